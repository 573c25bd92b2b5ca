"""Digital changes: contrast, saturation, coarse pixels and JPEG, of grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.filters import matrix, truncated


def contrast(pixels: Tensor, row: Row) -> Tensor:
    """Draw values towards the mean of their channel; `row` is the share of the distance that remains."""
    images = pixels.float()
    # summed as whole numbers, so that the order of the sum does not matter
    mean = pixels.sum((2, 3), keepdim=True, dtype=torch.int64).double().div_(images[0, 0].numel()).float()
    return truncated((images - mean).mul_(row[0]).add_(mean))


def saturate(pixels: Tensor, row: Row) -> Tensor:
    """Multiply the saturation of HSV by the first number of `row`, and add the second; grey counts as red."""
    factor, added = row
    images = pixels.float()
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - least
    saturation = (spread / value.clamp(min=1)).mul_(factor).add_(added).clamp_(0, 1)
    coloured = value - (value - images) * (saturation * value) / spread.clamp(min=1)
    paled = value * (1 - saturation)
    grey = torch.cat([value, paled, paled], 1)
    return truncated(torch.where(spread > 0, coloured, grey))


def pixelate(pixels: Tensor, row: Row) -> Tensor:
    """Shrink and enlarge by box filters, as Pillow does; `row` is the share of the side that remains."""
    height, width = pixels.shape[-2:]
    small_height, small_width = (max(1, int(size * row[0])) for size in (height, width))
    images = pixels.float()
    images = _boxes(images, width, small_width)
    images = _boxes(images.transpose(2, 3), height, small_height).transpose(2, 3)
    images = _boxes(images, small_width, width)
    return _boxes(images.transpose(2, 3), small_height, height).transpose(2, 3).to(torch.uint8)


def _boxes(images: Tensor, size: int, wanted: int) -> Tensor:
    """Scale the last axis of whole grey levels by a box filter, and round half up."""
    table = matrix(box_table(size, wanted), images)
    # sums of whole numbers are exact in any order
    return (images @ table.T).div_(table.sum(1)).add_(0.5).floor_()


@cache
def box_table(size: int, wanted: int) -> np.ndarray:
    """Return which pixels of a line make up which of the scaled one: 0 or 1, (wanted, size)."""
    scale = size / wanted
    centre = (np.arange(wanted)[:, None] + 0.5) * scale
    offset = (np.arange(size) + 0.5 - centre) / max(scale, 1.0)
    return ((offset > -0.5) & (offset <= 0.5)).astype(float)


def jpeg_compression(pixels: Tensor, row: Row) -> Tensor:
    """Encode and decode by libjpeg on the CPU, colours at half the resolution; `row` is the quality."""
    quality, images = int(row[0]), list(pixels.cpu())

    def coded(part: list[Tensor]) -> Tensor:
        return torch.stack([decode_jpeg(each, ImageReadMode.RGB) for each in encode_jpeg(part, quality)])

    workers = torch.get_num_threads()
    if workers == 1 or len(images) < 2:
        return coded(images).to(pixels.device)
    size = -(-len(images) // workers)
    with ThreadPoolExecutor(workers) as pool:  # the codec releases the interpreter's lock
        parts = list(pool.map(coded, [images[start : start + size] for start in range(0, len(images), size)]))
    return torch.cat(parts).to(pixels.device)
