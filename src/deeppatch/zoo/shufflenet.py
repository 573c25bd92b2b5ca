"""ShuffleNet for 32x32 images: pointwise convolutions in groups, between which channels are shuffled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM = 24
STAGES = [(200, 4), (400, 8), (800, 4)]  # channels and units of each, for 2 groups


class Unit(nn.Module):
    """A ShuffleNet unit (Zhang et al., CVPR 2018, Fig. 2): added to its input, or with stride 2 beside its average."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        middle = outputs // 4
        added = outputs - (inputs if stride == 2 else 0)
        first = 1 if inputs == STEM else groups  # few channels are not divided
        self.stride = stride
        self.shuffle = nn.ChannelShuffle(first)
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, added, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(added)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y = self.shuffle(self.relu(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        if self.stride == 1:
            return self.relu(y + x)
        return self.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNet(nn.Module):
    """ShuffleNet with groups (Zhang et al., CVPR 2018, Table 1) behind a stem that keeps small images large."""

    def __init__(self, classes: int, groups: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        units, inputs = [], STEM
        for outputs, count in STAGES:
            for index in range(count):
                units.append(Unit(inputs, outputs, 1 if index else 2, groups))
                inputs = outputs
        self.units = nn.Sequential(*units)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, classes)."""
        x = self.units(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
