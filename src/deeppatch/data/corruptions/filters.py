"""What the common corruptions share: rounding, blur and zoom as matrices, and motion along a line."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions.constants import SMALL

EPSILON = 1e-3  # in levels: what is a whole grey level in exact arithmetic stays one
NEGLIGIBLE = 1e-7


def to_levels(pixels: Tensor) -> Tensor:
    """Return uint8 pixels of values in [0, 1]: clipped and truncated, as the published generators do."""
    return (pixels * 255).add_(EPSILON).clamp_(0, 255).to(torch.uint8)


def truncated(levels: Tensor) -> Tensor:
    """Return uint8 pixels of values in [0, 255]: clipped and truncated."""
    return (levels + EPSILON).clamp_(0, 255).to(torch.uint8)


def to_unit(pixels: Tensor) -> Tensor:
    """Return float32 values in [0, 1] of uint8 pixels."""
    return pixels.float().div_(255)


def by_axis(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows X columns' for each channel X of images (N, C, H, W), for matrices (.., H) and (.., W).

    Matrices are multiplied image by image, because a product of all at once may be rounded by their number.
    """
    count, channels, height, width = images.shape
    each = images.reshape(-1, height, width)
    left, right = rows.expand(len(each), *rows.shape), columns.T.expand(len(each), *columns.T.shape)
    return left.bmm(each).bmm(right).view(count, channels, rows.shape[0], columns.shape[0])


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) by a Gaussian of radius int(4 sigma + 1/2), the pixels of the border repeated."""
    radius = int(4 * sigma + 0.5)
    if not radius:
        return images
    rows, columns = (matrix(gaussian_matrix(size, sigma, radius, "edge"), images) for size in images.shape[-2:])
    return by_axis(images, rows, columns)


def matrix(values: np.ndarray, like: Tensor) -> Tensor:
    """Return an array as a tensor of the type and on the device of another."""
    return torch.from_numpy(values).to(like)


@cache
def gaussian_matrix(size: int, sigma: float, radius: int, border: str) -> np.ndarray:
    """Return the matrix (size, size) of a Gaussian filter; `border` is edge or symmetric, as in numpy.pad."""
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    source = np.arange(size)[:, None] + offsets
    if border == "edge":
        source = source.clip(0, size - 1)
    else:
        source = source % (2 * size)
        source = np.where(source < size, source, 2 * size - 1 - source)
    found = np.zeros((size, size))
    np.add.at(found, (np.arange(size)[:, None], source), weights)
    return found


@cache
def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Return the matrix (size, size) that enlarges the centre of a line: bilinear, the ends of the cut aligned."""
    cut = math.ceil(size / factor)
    first = (size - cut) // 2
    enlarged = round(cut * factor)
    scale = (cut - 1) / (enlarged - 1) if enlarged > 1 else 0.0
    position = (np.arange(size) + (enlarged - size) // 2) * scale
    below = np.floor(position).astype(int).clip(0, cut - 1)
    share = position - below
    found = np.zeros((size, size))
    found[np.arange(size), first + below] += 1 - share
    found[np.arange(size), first + (below + 1).clip(max=cut - 1)] += share
    return found


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of images (N, C, H, W), bilinearly; see `zoom_matrix`."""
    height, width = images.shape[-2:]
    if max(height, width) <= SMALL:  # where a product of matrices is faster than reading by index
        rows, columns = (matrix(zoom_matrix(size, factor), images) for size in (height, width))
        return by_axis(images, rows, columns)
    for axis, size in ((2, height), (3, width)):
        below, share = (torch.from_numpy(each).to(images.device) for each in _neighbours(size, factor))
        low, high = images.index_select(axis, below), images.index_select(axis, (below + 1).clamp(max=size - 1))
        images = torch.lerp(low, high, share.unsqueeze(1) if axis == 2 else share)
    return images


@cache
def _neighbours(size: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row of `zoom_matrix` the first place that counts, and the share of the next one, float32."""
    table = zoom_matrix(size, factor)
    below = (table > 0).argmax(1)
    return below, (1 - table[np.arange(size), below]).astype(np.float32)


def moved_along_lines(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Blur grey levels, uint8 (N, C, H, W), along a line for each image, as ImageMagick's motion blur does.

    The line has 2 radius + 1 pixels, starts at the pixel itself and goes only one way; beyond the border the pixels of
    the border are repeated.

    Args:
        images: Grey levels, uint8 (N, C, H, W).
        radius: Half the length of the line, in pixels.
        sigma: Standard deviation of the weights along it, in pixels.
        angles: Angle for each image in degrees, float64 (N,).

    Returns:
        Truncated grey levels, uint8 (N, C, H, W).
    """
    count, channels, height, width = images.shape
    if max(height, width) > SMALL and images.device.type == "cpu":
        return _moved_one_by_one(images, radius, sigma, angles)
    flat, summed = images.reshape(count, channels, -1), torch.zeros(images.shape, device=images.device)
    rows, columns = (torch.arange(size, device=images.device, dtype=torch.int32) for size in (height, width))
    steps = torch.stack([angles.deg2rad().sin(), angles.deg2rad().cos()])
    for tap, weight in enumerate(_line(radius, sigma)):
        down, right = (tap * steps - 0.5).ceil().int().unsqueeze(2)
        row, column = (rows + down).clamp_(0, height - 1), (columns + right).clamp_(0, width - 1)
        source = (row.unsqueeze(2) * width + column.unsqueeze(1)).long().view(count, 1, -1)
        read = flat.gather(2, source.expand(-1, channels, -1)) if tap else flat
        summed += read.view(images.shape).float().mul_(weight)
    return truncated(summed)


def _moved_one_by_one(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Do the same by shifting each image as a whole, which is faster for large images on a CPU."""
    height, width = images.shape[-2:]
    weights, found = _line(radius, sigma), torch.empty_like(images)
    steps = torch.stack([angles.deg2rad().sin(), angles.deg2rad().cos()], 1)
    taps = torch.arange(len(weights), dtype=steps.dtype).view(-1, 1)
    for index, step in enumerate(steps):
        moves = (taps * step - 0.5).ceil().int()
        reach = int(moves.abs().max())
        padded = F.pad(images[index : index + 1].float(), (reach,) * 4, mode="replicate")
        summed = torch.zeros(padded[..., :height, :width].shape)
        for (down, right), weight in zip(moves.tolist(), weights, strict=True):
            top, left = reach + down, reach + right
            summed.add_(padded[..., top : top + height, left : left + width], alpha=weight)
        found[index : index + 1] = truncated(summed)
    return found


@cache
def _line(radius: float, sigma: float) -> tuple[float, ...]:
    """Return the weights along the line; those that do not count are left out at its end."""
    weights = np.exp(-(np.arange(2 * math.ceil(radius) + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    return tuple(float(weight) for weight in weights if weight >= NEGLIGIBLE)
