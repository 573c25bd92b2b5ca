"""A small classifier with batch normalisations, and batches of random images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def model(lively) -> nn.Module:
    """Return a classifier of four classes for images of 8x8 pixels, with logits that differ between images."""
    torch.manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    lively(network)
    with torch.no_grad():
        network[-1].weight.mul_(8)
        network[-1].bias.sub_(network(torch.rand(50, 3, 8, 8)).mean(0))
    return network


@pytest.fixture
def batches() -> list[Tensor]:
    """Return three batches of nine images, each brighter than the last."""
    draw = torch.Generator().manual_seed(4)
    return [(0.6 + 0.2 * number) * torch.rand(9, 3, 8, 8, generator=draw) for number in range(3)]
