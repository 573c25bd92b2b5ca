"""A classifier of pixels in [0, 1]: normalisation constants as buffers, then the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; both are part of the saved state."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) in [0, 1] to normalised values of the same shape."""
        return (pixels - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation followed by a network: maps pixels in [0, 1] to logits.

    Args:
        network: Maps normalised pixels (N, 3, H, W) to logits (N, classes). In the classifier's state dict its keys
            have the prefix `network.`.
        mean: The mean of each channel, for pixels in [0, 1].
        std: The standard deviation of each channel, above 0.
        classes: The names of the classes in the order of the logits, if they are known.

    Raises:
        UserError: When mean or std is not one number or three, is not finite, or std is not above 0.

    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    >>> model = Classifier(network, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=["cat", "dog"])
    >>> tuple(model(torch.rand(4, 3, 8, 8)).shape), model.classes
    ((4, 2), ('cat', 'dog'))
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if {len(mean), len(std)} - {1, 3}:
            raise UserError(f"mean {tuple(mean)}, std {tuple(std)}: give one number for each of 3 channels")
        if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise UserError(f"mean {tuple(mean)}, std {tuple(std)}: give finite numbers, std above 0")
        self.normalize = Normalize(mean, std)
        self.network = network
        self.classes = None if classes is None else tuple(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes)."""
        return self.network(self.normalize(pixels))


def network_of(model: nn.Module) -> nn.Module:
    """Return the network within a Classifier, or any other model itself."""
    return model.network if isinstance(model, Classifier) else model


def normalize_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """Normalise pixels (N, 3, H, W) in [0, 1] for the network within a model."""
    return model.normalize(pixels) if isinstance(model, Classifier) else pixels


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer, the CPU if it has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
