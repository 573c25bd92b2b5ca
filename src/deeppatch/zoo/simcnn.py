"""SimCNN, without and with batch normalisation, and its overly simple variants (Qi et al., ASE 2022; TOSEM 2023)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# output channels of the convolutions, M for max-pooling by two: those of VGG-16
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class SimCNN(nn.Module):
    """Thirteen convolutions and three linear layers for images of 32x32 pixels.

    `width` scales channels, `dropout` 0 makes the poor-fit variant. `hidden` is the width of the linear layers between,
    and with `norm` a batch normalisation follows each convolution: GradSplitter's variant has both, and 4,096.

    Keys are those of the published checkpoints: conv_0 to conv_12, fc_13 to fc_15; with `norm` the convolution is 0 and
    its normalisation 1 within each of the former.
    """

    def __init__(
        self, classes: int, width: float = 1.0, dropout: float = 0.5, *, hidden: int = 512, norm: bool = False
    ) -> None:
        super().__init__()
        self.steps: list[str] = []  # the layers of the convolutional part, in order
        channels = 3
        for layer in LAYERS:
            if isinstance(layer, int):
                self.steps.append(f"conv_{sum(step != 'M' for step in self.steps)}")
                outputs = round(layer * width)
                conv = init_normal(nn.Conv2d(channels, outputs, 3, padding=1))
                self.add_module(self.steps[-1], nn.Sequential(conv, nn.BatchNorm2d(outputs)) if norm else conv)
                channels = outputs
            else:
                self.steps.append(layer)
        self.dropout = nn.Dropout(dropout)
        hidden = round(hidden * width)
        self.fc_13 = nn.Linear(channels, hidden)
        self.fc_14 = nn.Linear(hidden, hidden)
        self.fc_15 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) to logits (N, classes)."""
        for step in self.steps:
            x = F.max_pool2d(x, 2) if step == "M" else F.relu(self.get_submodule(step)(x))
        x = F.relu(self.fc_13(self.dropout(x.flatten(1))))
        logits: Tensor = self.fc_15(F.relu(self.fc_14(self.dropout(x))))
        return logits


def weak_simcnn(classes: int) -> nn.Module:
    """Return the overly simple SimCNN for mixed CIFAR classes: four convolutions of 64 kernels."""
    blocks = [_block(channels, 64, size=3, padding=1) for channels in (3, 64, 64, 64)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 2 * 2, classes))


def weak_simcnn_for_svhn(classes: int) -> nn.Module:
    """Return the overly simple SimCNN for SVHN's digits: two convolutions of 8 kernels, 5x5, without padding."""
    blocks = [_block(channels, 8, size=5, padding=0) for channels in (3, 8)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 5 * 5, classes))


def init_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw weights from a normal distribution of variance 2 / (kernel area * output channels), biases zero."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _block(inputs: int, outputs: int, *, size: int, padding: int) -> nn.Module:
    return nn.Sequential(init_normal(nn.Conv2d(inputs, outputs, size, padding=padding)), nn.ReLU(), nn.MaxPool2d(2))
