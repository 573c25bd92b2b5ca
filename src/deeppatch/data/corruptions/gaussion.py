"""The published degradation, called gaussion: Gaussian blur of a batch at several levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from deeppatch.errors import UserError

SIGMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def kernel_size(sigma: float) -> int:
    """Return the odd width of the blur kernel in pixels: 3, 5, 7, 9, 11, 13 for the six published levels."""
    return 2 * (math.ceil(4 * sigma) // 2) + 1


class GaussianBlur:
    """Gaussian blur of a batch with a level for each image: 0 is clean, i is `sigmas[i - 1]` (in pixels).

    Blurring is linear and separable, so each level has one matrix B per axis, and a blurred image is B X B'; a batch of
    mixed levels is two batched matrix products. The matrices are torchvision's gaussian_blur (reflect padding)
    applied to the unit vectors, so the result equals torchvision's up to rounding. They are created when an image size
    is first seen.

    Args:
        sigmas: The standard deviation of each level, in pixels.
        prefix: What stands before the names of the levels.
    """

    draws = False

    def __init__(self, sigmas: Sequence[float] = SIGMAS, prefix: str = "") -> None:
        self.sigmas = tuple(sigmas)
        self.prefix = prefix
        self._matrices: dict[tuple[int, torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The standard deviations: s=0.5 and so on."""
        return tuple(f"{self.prefix}s={sigma:g}" for sigma in self.sigmas)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Blur float pixels (N, C, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        rows, columns = self._of_size(pixels)
        if isinstance(levels, int):
            if levels == 0:
                return pixels
            return rows[levels] @ pixels @ columns[levels].T
        blurred = rows[levels].unsqueeze(1) @ pixels @ columns[levels].unsqueeze(1).transpose(2, 3)
        return torch.where((levels == 0).view(-1, 1, 1, 1), pixels, blurred)

    def _of_size(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        height, width, device = *pixels.shape[-2:], pixels.device
        widest = max(map(kernel_size, self.sigmas))
        if min(height, width) <= widest // 2:
            raise UserError(
                f"images of {height}x{width} pixels are too small for a blur whose kernel is {widest} pixels wide; "
                f"use images of at least {widest // 2 + 1} pixels on either side"
            )
        for size in {height, width}:
            if (size, device) not in self._matrices:
                self._matrices[size, device] = self._blurred_units(size).to(device)
        return self._matrices[height, device], self._matrices[width, device]

    def _blurred_units(self, size: int) -> Tensor:
        units = torch.eye(size).unsqueeze(0)
        # a kernel one pixel wide does not blur the other axis, so column j of the result is the blurred unit vector j
        blurred = [gaussian_blur(units, [1, kernel_size(s)], [s, s])[0] for s in self.sigmas]
        return torch.stack([units[0], *blurred])
