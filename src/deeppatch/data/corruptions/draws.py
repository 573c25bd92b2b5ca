"""Random numbers for each image of a batch that depend on the image and a seed, and on nothing else.

A stream for each image: word j of a stream is a bijective mixture of its key and j (SplitMix64: Steele, Lea and Flood,
OOPSLA 2014), so no number depends on the batch, on the threads or on what was drawn for other images, and all are
computed at once on the device of the pixels. The key of an image is a hash of its bytes. Only integer operations,
tables and products with powers of two are used, so that the numbers do not depend on the device either.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional as F

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number, as are the other two
FIRST, SECOND = -4658895280553007687, -7723592293110705685
NORMALS = 1 << 16


def _mixed(words: Tensor) -> Tensor:
    """Mix int64 words, in place; shifts are logical ones."""
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1)):
        shifted = (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        words.bitwise_xor_(shifted)
        if factor != 1:
            words.mul_(factor)
    return words


def _counted(start: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(start + 1, start + 1 + count, device=device).mul_(GOLDEN)


def fingerprints(pixels: Tensor) -> Tensor:
    """Return a hash of 64 bits of each image of uint8 pixels (N, ...), int64 (N,)."""
    flat = pixels.reshape(len(pixels), -1)
    words = F.pad(flat, (0, -flat.shape[1] % 8)).contiguous().view(torch.int64)
    weights = _mixed(_counted(0, words.shape[1], pixels.device)).bitwise_or_(1)
    # the upper half of a word joins the lower one, because a product carries upwards only
    words = words ^ (words >> 32).bitwise_and_((1 << 32) - 1)
    return _mixed(words.mul_(weights).sum(1))


def keys(fingerprint: Tensor, seed: int, *purpose: str | int) -> Tensor:
    """Return the key of each image's stream, int64 (N,), for a seed and a purpose."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return _mixed(fingerprint ^ int.from_bytes(digest[:8], "big", signed=True))


class Draws:
    """Random numbers for each image of a batch, drawn one after the other from the streams of `keys` (N,)."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self._drawn = 0

    def __len__(self) -> int:
        return len(self.keys)

    def words(self, count: int) -> Tensor:
        """Draw int64 (N, count), uniform over all words of 64 bits."""
        counted = _counted(self._drawn, count, self.keys.device)
        self._drawn += count
        return _mixed(self.keys.unsqueeze(1) + counted)

    def bits16(self, *shape: int) -> Tensor:
        """Draw int32 (N, *shape), uniform from 0 to 65,535."""
        count = int(np.prod(shape))
        halves = self.words(-(-count // 4)).view(torch.int16)[:, :count]
        return halves.int().bitwise_and_(0xFFFF).reshape(len(self), *shape)

    def bits32(self, *shape: int) -> Tensor:
        """Draw int32 (N, *shape), uniform over all 32-bit numbers."""
        count = int(np.prod(shape))
        return self.words(-(-count // 2)).view(torch.int32)[:, :count].reshape(len(self), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw float32 (N, *shape), uniform in [0, 1): multiples of 2^-24."""
        return (self.bits32(*shape) >> 8).bitwise_and_(0xFFFFFF).float().mul_(2.0**-24)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw float64 (N, *shape), uniform in [low, high)."""
        words = self.words(int(np.prod(shape))).reshape(len(self), *shape)
        return (words >> 11).bitwise_and_((1 << 53) - 1).double().mul_(2.0**-53 * (high - low)).add_(low)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw int64 (N, *shape), uniform from `low` to `high` - 1."""
        return ((self.bits16(*shape).long() * (high - low)) >> 16).add_(low)

    def normal(self, *shape: int) -> Tensor:
        """Draw float32 (N, *shape), standard normal: the means of 65,536 slices of equal probability."""
        table = torch.from_numpy(normal_slices()).to(self.keys.device)
        return table.index_select(0, self.bits16(*shape).flatten()).view(len(self), *shape)


@cache
def normal_slices() -> np.ndarray:
    """Return the means of 65,536 slices of a normal distribution, ascending, scaled to unit variance, float32."""
    edges = ndtri(np.arange(NORMALS // 2, NORMALS) / NORMALS)
    density = np.append(np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi), 0.0)
    upper = -np.diff(density) * NORMALS
    slices = np.concatenate([-upper[::-1], upper])
    return (slices / slices.std()).astype(np.float32)
