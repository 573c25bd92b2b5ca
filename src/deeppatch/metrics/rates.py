"""Accuracies, and repair and break rates, of tables of correct predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# one row for each view, clean first: a tensor (views, images), or a row for each where they differ in length
Rows = Tensor | tuple[Tensor, ...]


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share, in [0, 1], of predictions (M,) that equal labels (M,)."""
    return (predictions == labels).double().mean().item()


def at_chance(percent: float, images: int, classes: int) -> bool:
    """Tell whether an accuracy in percent is at most three standard deviations above that of guessing a class.

    >>> at_chance(21.67, 200, 4), at_chance(72.5, 200, 4)
    (True, False)
    """
    chance = 1 / classes
    return percent / 100 <= chance + 3 * (chance * (1 - chance) / images) ** 0.5


def view_names(level_names: Sequence[str]) -> list[str]:
    """Return the names of the rows of a table of correct predictions: clean, then each level of a corruption."""
    return ["clean", *level_names]


def rows_of(rows: Sequence[Tensor]) -> Rows:
    """Return rows as one tensor where they have the same length."""
    return torch.stack(list(rows)) if len({len(row) for row in rows}) == 1 else tuple(rows)


def accuracies(correct: Rows, level_names: Sequence[str], mean: str = "mean") -> dict[str, float]:
    """Return accuracies in percent of a table of correct predictions, bool (levels + 1, images).

    Keys are clean, each level, `mean` for the mean over the levels, and append for the mean over all rows.
    """
    shares = [(100 * row.double().mean()).item() for row in correct]
    named = dict(zip(view_names(level_names), shares, strict=True))
    return {**named, mean: float(np.mean(shares[1:])), "append": float(np.mean(shares))}


def repair_and_break_rates(
    correct: Rows, before: Rows, level_names: Sequence[str], mean: str = "mean"
) -> dict[str, dict[str, float]]:
    """Return repair (wrong to correct) and break (correct to wrong) rates, in percent of all images of each view.

    Accuracy is that of `before`, plus repair, minus break. Both tables are bool (levels + 1, images).
    """
    pairs = list(zip(correct, before, strict=True))
    return {
        "repair": accuracies(tuple(after & ~first for after, first in pairs), level_names, mean),
        "break": accuracies(tuple(first & ~after for after, first in pairs), level_names, mean),
    }
