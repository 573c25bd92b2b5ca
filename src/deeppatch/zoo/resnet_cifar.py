"""ResNets for 32x32 images: three stages of basic blocks, with projection (B) or parameter-free (A) shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ShortcutA(nn.Module):
    """Parameter-free shortcut: every second pixel, with channels of zeros added in equal parts on either side."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + added, H/2, W/2)."""
        every_second = F.avg_pool2d(x, 1, 2)  # not a slice, whose gradient would lose the memory layout
        return F.pad(every_second, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation around an additive shortcut (He et al., CVPR 2016, Fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.downsample = projection if option == "B" else ShortcutA(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut  # in place: new memory takes longer to fill
        return self.relu(y)


class CifarResNet(nn.Module):
    """ResNet of depth 6 * `blocks` + 2 for small images (He et al., CVPR 2016, section 4.2); `width` is 16 there."""

    def __init__(self, blocks: int, classes: int, option: str = "B", width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, 1, blocks, option)
        self.layer2 = _stage(width, 2 * width, 2, blocks, option)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks, option)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(inputs: int, outputs: int, stride: int, blocks: int, option: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, option)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, option) for _ in range(blocks - 1)))
