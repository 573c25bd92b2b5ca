"""Degradations of whole batches as tensor operations on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

SIGMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
# the published command line spells it `gaussion`
NOISES: dict[str, tuple[float, ...]] = {"gaussion": SIGMAS}
ALIASES = {"gaussian-blur": "gaussion"}


def kernel_size(sigma: float) -> int:
    """Return the odd width of the blur kernel in pixels: 3, 5, 7, 9, 11, 13 for the six published levels."""
    return 2 * (math.ceil(4 * sigma) // 2) + 1


class Corruption(Protocol):
    """A degradation of images at several levels: 0 is clean, level i is called `level_names[i - 1]`."""

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of levels 1, 2, ..., as tables and plots show them."""

    def __len__(self) -> int:
        """Return the number of levels beside clean."""

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, int64 (N,) or one for all."""


class Blur:
    """Gaussian blur of a batch, each image at a level of its own: 0 is clean, i is `sigmas[i - 1]` (in pixels).

    Blurring is linear and separable, so a level is one matrix B per axis and a blurred image is B X B'; a batch of
    mixed levels is two batched matrix products. The matrices are torchvision's gaussian_blur (reflect padding)
    applied to the unit vectors, hence the result is torchvision's to rounding.
    """

    def __init__(self, sigmas: Sequence[float], height: int, width: int, device: torch.device) -> None:
        self.sigmas = tuple(sigmas)
        self._rows = self._matrices(height).to(device)
        self._columns = self._matrices(width).to(device)

    def _matrices(self, size: int) -> Tensor:
        units = torch.eye(size).unsqueeze(0)
        # a kernel one pixel wide leaves the other axis alone: column j of the result is the blurred unit vector j
        blurred = [gaussian_blur(units, [1, kernel_size(s)], [s, s])[0] for s in self.sigmas]
        return torch.stack([units[0], *blurred])

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The standard deviations: s=0.5 and so on."""
        return tuple(f"s={sigma:g}" for sigma in self.sigmas)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Blur float pixels (N, C, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        if isinstance(levels, int):
            if levels == 0:
                return pixels
            return self._rows[levels] @ pixels @ self._columns[levels].T
        rows, columns = self._rows[levels].unsqueeze(1), self._columns[levels].unsqueeze(1)
        blurred = rows @ pixels @ columns.transpose(2, 3)
        return torch.where((levels == 0).view(-1, 1, 1, 1), pixels, blurred)
