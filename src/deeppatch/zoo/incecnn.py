"""InceCNN: three convolutions, then blocks of parallel ones, for images of 32x32 pixels (Qi et al., TOSEM 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM = (64, 128, 256)
# output channels of the convolutions of 1x1, 3x3 and 5x5 pixels in each block; all three read the same maps
BLOCKS = ((256, 256, 64), (512, 512, 64), (512, 512, 64))
SIZES = (1, 3, 5)


class InceCNN(nn.Module):
    """Twelve convolutions with batch normalisation and one linear layer; `width` scales channels.

    Keys are those of the published checkpoints: conv_0 to conv_11, with the convolution as 0 and its normalisation as
    1, and fc_12.
    """

    def __init__(self, classes: int, width: float = 1.0, dropout: float = 0.4) -> None:
        super().__init__()
        stem = [round(width * channels) for channels in STEM]
        blocks = [[round(width * channels) for channels in block] for block in BLOCKS]
        for index, (inputs, outputs) in enumerate(zip([3, *stem], stem, strict=False)):
            self.add_module(f"conv_{index}", _normalised(inputs, outputs, 3))
        self.stem = [f"conv_{index}" for index in range(len(stem))]
        self.branches: list[list[str]] = []  # the names of the parallel convolutions, by block
        channels = stem[-1]
        for number, block in enumerate(blocks):
            first = len(stem) + number * len(SIZES)
            self.branches.append([f"conv_{first + index}" for index in range(len(SIZES))])
            for name, outputs, size in zip(self.branches[-1], block, SIZES, strict=True):
                self.add_module(name, _normalised(channels, outputs, size))
            channels = sum(block)
        self.dropout = nn.Dropout(dropout)
        self.fc_12 = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to logits (N, classes)."""
        for name in self.stem:
            x = self.get_submodule(name)(x)
        for names in self.branches:
            x = F.max_pool2d(x, 2)
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        logits: Tensor = self.fc_12(self.dropout(x))
        return logits


def _normalised(inputs: int, outputs: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU())
