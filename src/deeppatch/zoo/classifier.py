"""A classifier of pixels in [0, 1]: normalisation constants as buffers, then the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; both are part of the saved state."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) in [0, 1] to normalised values of the same shape."""
        return (pixels - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation followed by a network; `network` keeps the published state-dict keys."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes)."""
        return self.network(self.normalize(pixels))


def network_of(model: nn.Module) -> nn.Module:
    """Return the network within a Classifier, or any other model itself."""
    return model.network if isinstance(model, Classifier) else model


def normalize_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return pixels (N, 3, H, W) in [0, 1] as the network within a model reads them."""
    return model.normalize(pixels) if isinstance(model, Classifier) else pixels


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device
