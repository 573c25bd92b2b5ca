"""A small classifier with batch normalisations, and batches of random images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="module")
def shared_model() -> nn.Module:
    """Return a classifier of four classes for images of 8x8 pixels, with logits that differ between images."""
    draw = torch.Generator().manual_seed(9)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.BatchNorm2d):
                for values, low, high in ((layer.running_mean, -0.3, 0.3), (layer.running_var, 0.5, 1.5),
                                          (layer.weight, 0.5, 1.5), (layer.bias, -0.3, 0.3)):  # fmt: skip
                    values.uniform_(low, high, generator=draw)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = (14 if isinstance(layer, nn.Linear) else 1) / layer.weight[0].numel() ** 0.5
                layer.weight.uniform_(-bound, bound, generator=draw)
                layer.bias.uniform_(-0.2, 0.2, generator=draw)
        network[-1].bias.sub_(network(torch.rand(50, 3, 8, 8, generator=draw)).mean(0))
    return network


@pytest.fixture
def model(shared_model) -> nn.Module:
    """Return a copy of it, which a test may change."""
    return copy.deepcopy(shared_model)


@pytest.fixture
def batches() -> list[Tensor]:
    """Return three batches of nine images, each brighter than the last."""
    draw = torch.Generator().manual_seed(4)
    return [(0.6 + 0.2 * number) * torch.rand(9, 3, 8, 8, generator=draw) for number in range(3)]
