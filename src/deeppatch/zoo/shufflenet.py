"""HybridRepair's ShuffleNet for 32x32 images: pointwise convolutions in groups, between which channels are shuffled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM = 24
STAGES = [(200, 4), (400, 8), (800, 4)]  # channels and units of each, for 2 groups


class Unit(nn.Module):
    """A ShuffleNet unit (Zhang et al., CVPR 2018, Fig. 2): added to its input, or with stride 2 beside its average.

    As in HybridRepair's network, the middle is a quarter of the channels that the unit makes, and not of those that
    leave it, and a ReLU follows the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        made = outputs - (inputs if stride == 2 else 0)
        middle = made // 4
        first = 1 if inputs == STEM else groups  # few channels are not divided
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.shuffle = nn.ChannelShuffle(first)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y = self.shuffle(self.relu(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        if self.stride == 1:
            y += x  # in place: new memory takes longer to fill
            return self.relu(y)
        return self.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNet(nn.Module):
    """ShuffleNet with groups (Zhang et al., CVPR 2018, Table 1) behind a stem that keeps small images large.

    Keys are those of HybridRepair's checkpoints: conv1, bn1, layer1 to layer3, and `fc`, which is `linear` there.
    """

    def __init__(self, classes: int, groups: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        inputs, stages = STEM, []
        for outputs, count in STAGES:
            rest = [Unit(outputs, outputs, 1, groups) for _ in range(count - 1)]
            stages.append(nn.Sequential(Unit(inputs, outputs, 2, groups), *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
