"""Blur: out of focus, behind glass, by motion, by zooming, and Gaussian; of grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import (
    gaussian,
    matrix,
    moved_along_lines,
    truncated,
    zoom_matrix,
    zoomed,
)

FEW = 40  # kernels of more values are applied by Fourier transforms
LEAST = 1e-6  # smaller values of a kernel are left out


def gaussian_blur(pixels: Tensor, row: Row) -> Tensor:
    """Blur by a Gaussian; `row` is its standard deviation in pixels. The border is repeated: not `gaussion`."""
    return truncated(gaussian(pixels.float(), row[0]))


def defocus_blur(pixels: Tensor, row: Row) -> Tensor:
    """Average over a disc; `row` is its radius and the standard deviation of its smoothed edge, in pixels."""
    kernel = disc(*row)
    radius = len(kernel) // 2
    padded = F.pad(pixels.float(), (radius,) * 4, mode="reflect")
    if np.count_nonzero(kernel) > FEW:
        return truncated(_convolved(padded.double(), kernel)[..., radius:-radius, radius:-radius])
    height, width = pixels.shape[-2:]
    summed = torch.zeros_like(padded[..., :height, :width])
    for top, left in np.argwhere(kernel):
        summed += padded[..., top : top + height, left : left + width] * float(kernel[top, left])
    return truncated(summed)


@cache
def disc(radius: float, sigma: float) -> np.ndarray:
    """Return the kernel of a disc, odd in width, with a smoothed edge; rows and columns without weight are cut off."""
    half = max(8, math.ceil(radius))
    offsets = np.arange(-half, half + 1)
    kernel = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = correlate1d(kernel, weights / weights.sum(), axis, mode="mirror")
    total, kernel = kernel.sum(), np.where(kernel < LEAST, 0, kernel)
    kept = np.abs(offsets)[np.flatnonzero(kernel.any(0))].max()
    kernel = kernel[half - kept : half + kept + 1, half - kept : half + kept + 1]
    return kernel * (total / kernel.sum())  # which is not 1 where the smoothed edge reaches beyond the kernel


def _convolved(images: Tensor, kernel: np.ndarray) -> Tensor:
    """Convolve images (N, C, H, W) with a symmetric kernel, as if they were periodic."""
    size, radius = images.shape[-2:], len(kernel) // 2
    placed = F.pad(matrix(kernel, images), (0, size[1] - len(kernel), 0, size[0] - len(kernel)))
    spectrum = torch.fft.rfft2(placed.roll((-radius, -radius), (0, 1)))
    return torch.fft.irfft2(torch.fft.rfft2(images) * spectrum, s=size)


def line_angles(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw the angle of the motion for each image, in degrees."""
    return (draws.between(-45, 45),)


def motion_blur(pixels: Tensor, row: Row, angles: Tensor) -> Tensor:
    """Blur along a line for each image; `row` is half its length and the standard deviation of its weights."""
    return moved_along_lines(pixels, row[0], row[1], angles)


def zoom_blur(pixels: Tensor, row: Row) -> Tensor:
    """Average the image and its enlargements; `row` is the number of zoom factors from 1 on and their distance."""
    images, (height, width) = pixels.float(), pixels.shape[-2:]
    unchanged, factors = _zooms(height, width, int(row[0]), row[1])
    summed = images * (1 + unchanged)
    for factor in factors:
        summed += zoomed(images, factor)
    return truncated(summed / (row[0] + 1))


@cache
def _zooms(height: int, width: int, count: int, step: float) -> tuple[int, list[float]]:
    """Return how many factors change nothing, and the others."""
    factors = [1 + index * ((1 + step) - 1) for index in range(count)]
    pairs = [(zoom_matrix(height, factor), zoom_matrix(width, factor)) for factor in factors]
    identity = [np.array_equal(up, np.eye(height)) and np.array_equal(to, np.eye(width)) for up, to in pairs]
    return sum(identity), [factor for factor, same in zip(factors, identity, strict=True) if not same]


def moves(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw how far each pixel looks in each pass, to the right and down: int64 (N, passes, 2, H, W)."""
    distance, passes = int(row[1]), int(row[2])
    return (draws.integers(-distance, distance, passes, 2, height, width),)


def glass_blur(pixels: Tensor, row: Row, moves: Tensor) -> Tensor:
    """Blur, let pixels become copies of their neighbours, and blur again.

    `row` is the standard deviation of the blur, the greatest distance of a neighbour, both in pixels, and the number
    of passes. The published loop means to swap neighbours, but copies them.
    """
    sigma, distance = row[0], int(row[1])
    moved = truncated(gaussian(pixels.float(), sigma))
    for chosen in moves.unbind(1):
        moved = _copied(moved, chosen, distance)
    return truncated(gaussian(moved.float(), sigma))


def _copied(pixels: Tensor, moves: Tensor, distance: int) -> Tensor:
    """Run one pass: from the last pixel to the first, each becomes a copy of the pixel that `moves` (N, 2, H, W) names.

    A pixel that names one that has been visited before gets what that has become. Such chains are followed by pointer
    doubling: node p is the value of pixel p before the pass, node HW + p its value after it.
    """
    count, channels, height, width = pixels.shape
    area, device = height * width, pixels.device
    rows, columns = (torch.arange(size, device=device) for size in (height, width))
    visited = ((rows > distance) & (rows <= height - distance)).unsqueeze(1) & (
        (columns > distance) & (columns <= width - distance)
    )
    place = torch.arange(area, device=device).view(height, width)
    named = torch.where(visited, place + moves[:, 1] * width + moves[:, 0], place).view(count, area)
    if distance > 1:  # at distance 1 a pixel can only name what comes later
        later = visited.flatten()[named] & (named > place.flatten()) & visited.flatten()
        after = named + area * later
        pointers = torch.cat([place.flatten().expand(count, area), after], 1)
        while bool((after >= area).any()):
            pointers = pointers.gather(1, pointers)
            after = pointers[:, area:]
        named = after
    return pixels.flatten(2).gather(2, named.unsqueeze(1).expand(-1, channels, -1)).view(pixels.shape)
