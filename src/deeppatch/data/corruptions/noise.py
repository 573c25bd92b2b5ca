"""Noise: Gaussian, speckle, shot (Poisson) and impulse noise of grey levels, uint8 (N, 3, H, W)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from deeppatch.data.corruptions.constants import Row
from deeppatch.data.corruptions.draws import Draws
from deeppatch.data.corruptions.filters import EPSILON, truncated


def normal_values(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw a normal value for each pixel and channel."""
    return (draws.normal(3, height, width),)


def gaussian_noise(pixels: Tensor, row: Row, noise: Tensor) -> Tensor:
    """Add normal values; `row` is their standard deviation, 1 being white."""
    return truncated((noise * (255 * row[0])).add_(pixels))


def speckle_noise(pixels: Tensor, row: Row, noise: Tensor) -> Tensor:
    """Multiply by 1 + normal values; `row` is their standard deviation."""
    return truncated((noise * row[0]).add_(1).mul_(pixels))


def uniform_values(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw a number in [0, 1) for each pixel and channel."""
    return (draws.uniform(3, height, width),)


def impulse_noise(pixels: Tensor, row: Row, uniform: Tensor) -> Tensor:
    """Set values to 255 or to 0, each with half the probability `row`; channels are independent."""
    salted = pixels.masked_fill(uniform < row[0], 0)
    return salted.masked_fill_(uniform < row[0] / 2, 255)


def random_bits(draws: Draws, height: int, width: int, row: Row) -> tuple[Tensor]:
    """Draw 32 bits for each pixel and channel."""
    return (draws.bits32(3, height, width),)


def shot_noise(pixels: Tensor, row: Row, bits: Tensor) -> Tensor:
    """Replace each value by a Poisson count, divided by the mean count of white, `row`.

    There are only 256 means, so each has an alias table (Walker 1977): the lowest bits choose a column, the highest 16
    bits choose between the two levels of the column.
    """
    tables = torch.from_numpy(alias_tables(row[0])).to(pixels.device)
    columns = tables.shape[1]
    entry = tables.flatten().index_select(0, (pixels.int() * columns).add_(bits & (columns - 1)).flatten())
    bits = bits.flatten()
    first = (bits >> 16).bitwise_and_(0xFFFF) < (entry >> 16).bitwise_and_(0xFFFF)
    return torch.where(first, entry, entry >> 8).to(torch.uint8).view(pixels.shape)


@cache
def alias_tables(white: float) -> np.ndarray:
    """Return alias tables of the level of a Poisson count for each of 256 grey levels, int32 (256, columns).

    An entry holds the first level of its column (8 bits), the second (8 bits), and the probability of the first
    (16 bits). Counts that end in the same level are one outcome.
    """
    counts = np.arange(int(white) + 1)
    level_of = np.floor(255 * counts / white + EPSILON).astype(int)
    levels, outcome = np.unique(level_of, return_inverse=True)
    columns = 1 << (len(levels) - 1).bit_length()
    tables = np.zeros((256, columns), dtype=np.int64)
    for grey in range(256):
        share = poisson.pmf(counts, white * grey / 255)
        share[-1] += poisson.sf(counts[-1], white * grey / 255)  # what is beyond white is white
        probability = np.zeros(columns)
        np.add.at(probability, outcome, share)
        tables[grey] = _columns(probability, np.append(levels, np.zeros(columns - len(levels), int)))
    return tables.astype(np.uint32).view(np.int32)


def _columns(probability: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the columns of one alias table: each is filled up by an outcome that has more than its share."""
    heights = probability / probability.sum() * len(probability)
    threshold, second = np.ones(len(heights)), levels.copy()
    low = [int(place) for place in np.flatnonzero(heights < 1)]
    high = [int(place) for place in np.flatnonzero(heights >= 1)]
    while low and high:
        small, large = low.pop(), high[-1]
        threshold[small], second[small] = heights[small], levels[large]
        heights[large] -= 1 - heights[small]
        if heights[large] < 1:
            low.append(high.pop())
    whole = np.round(threshold * 65536).astype(np.int64)
    second = np.where(whole > 65535, levels, second)
    return whole.clip(max=65535) << 16 | second << 8 | levels
