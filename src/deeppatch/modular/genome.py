"""Chromosomes: one bit for each group of kernels that are about equally important to a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]


def group_sizes(kernels: int) -> list[int]:
    """Return how many kernels each bit of a layer stands for, most important first (Qi et al., ASE 2022).

    There are 10 groups in a layer of less than 256 kernels, else 100, as even as possible, larger ones first.
    """
    count = min(kernels, 10 if kernels < 256 else 100)
    return [len(part) for part in np.array_split(np.arange(kernels), count)]


@dataclass(frozen=True)
class Genome:
    """How the bits of one class stand for kernels: `orders` has for each layer its kernels, most important first."""

    orders: Sequence[NDArray[np.int64]]

    @property
    def lengths(self) -> list[int]:
        """The number of bits of each layer."""
        return [len(group_sizes(len(order))) for order in self.orders]

    def decode(self, bits: Bits) -> list[Bits]:
        """Return for each layer which kernels (P, kernels) the chromosomes (P, bits) keep.

        A layer without a bit keeps its most important group.
        """
        masks = []
        for part, order in zip(np.split(bits, np.cumsum(self.lengths)[:-1], axis=1), self.orders, strict=True):
            alive = part.copy()
            alive[~part.any(1), 0] = True
            mask = np.zeros((len(bits), len(order)), bool)
            mask[:, order] = np.repeat(alive, group_sizes(len(order)), axis=1)
            masks.append(mask)
        return masks
