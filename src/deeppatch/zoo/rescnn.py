"""ResCNN, without and with batch normalisation, and its overly simple variants (Qi et al., ASE 2022; TOSEM 2023)."""

from __future__ import annotations

from torch import Tensor, nn


class ResCNN(nn.Module):
    """Blocks of one convolution, ReLU and perhaps pooling, with identity shortcuts that are added after the ReLU.

    It is for images of 32x32 pixels. With `norm` a batch normalisation follows each convolution.

    `channels` are those of each block's output, `pooled` the blocks that end in max-pooling by two, and `skips` has for
    a block the earlier one whose output is added to its own.
    """

    def __init__(
        self,
        channels: list[int],
        pooled: set[int],
        skips: dict[int, int],
        classifier: nn.Module,
        size: int = 3,
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.skips = skips
        self.blocks = [f"conv_{index}" for index in range(len(channels))]
        for index, (inputs, outputs) in enumerate(zip([3, *channels], channels, strict=False)):
            pool = [nn.MaxPool2d(2)] if index in pooled else []
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
            layers = [conv, nn.BatchNorm2d(outputs)] if norm else [conv]
            self.add_module(self.blocks[index], nn.Sequential(*layers, nn.ReLU(), *pool))
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) to logits (N, classes)."""
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = self.get_submodule(block)(x)
            if index in self.skips:
                x = x + outputs[self.skips[index]]
            outputs.append(x)
        logits: Tensor = self.classifier(x)
        return logits


def rescnn(classes: int, width: float = 1.0, dropout: float = 0.4, *, norm: bool = False) -> nn.Module:
    """Return the strong network, twelve convolutions; `width` scales channels, `dropout` 0 makes the poor-fit variant.

    With `norm` and a dropout of 0.5 it is GradSplitter's. Keys are those of the published checkpoints: conv_0.0 to
    conv_11.0, with `norm` conv_0.1 to conv_11.1 too, and classifier.2, which is fc_12 in GradSplitter's.
    """
    channels = [round(width * full_width) for full_width in (64, 128, 128, 128, 256, 512, 512, 512, 512, 512, 512, 512)]
    head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[-1], classes))
    return ResCNN(channels, {1, 4, 5, 8, 9}, {3: 1, 7: 5, 11: 9}, head, norm=norm)


def weak_rescnn(classes: int) -> nn.Module:
    """Return the overly simple ResCNN for mixed CIFAR classes: four convolutions of 64 kernels."""
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(64 * 8 * 8, classes))
    return ResCNN([64] * 4, {0, 3}, {2: 0}, head)


def weak_rescnn_for_svhn(classes: int) -> nn.Module:
    """Return the overly simple ResCNN for SVHN's digits: three convolutions of 8 kernels, pooled after the shortcut."""
    head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, classes))
    return ResCNN([8] * 3, {0}, {2: 0}, head, size=5)
