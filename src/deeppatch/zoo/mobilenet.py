"""MobileNet for 32x32 images: depthwise separable convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# channels and stride of each block; the ImageNet network with a stem and first strides that keep small images large
BLOCKS = [
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
]  # fmt: skip


def _normalised(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


class MobileNet(nn.Module):
    """MobileNet of width 1 (Howard et al., 2017, Table 1), as HybridRepair uses it: 46.4 million multiply-adds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normalised(nn.Conv2d(3, 32, 3, 1, 1, bias=False)))
        blocks, inputs = [], 32
        for outputs, stride in BLOCKS:
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
            pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
            blocks.append(nn.Sequential(*_normalised(depthwise), *_normalised(pointwise)))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, classes)."""
        return self.fc(torch.flatten(self.avgpool(self.blocks(self.stem(x))), 1))
