"""Measures of predictions and of a router's decisions: accuracies, repair and break rates, intervals, AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, norm, t
from sklearn.metrics import roc_auc_score
from torch import Tensor

CONFIDENCE = 0.95
# one row for each view, clean first: a tensor (views, images), or a row for each where they differ in length
Rows = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its two-sided 95 % confidence interval, all in the same unit."""

    estimate: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit, such as percent for shares; the factor is above 0."""
        return Interval(factor * self.estimate, factor * self.low, factor * self.high)


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


def router_metrics(scores: Rows, switched: Rows, level_names: Sequence[str], mean: str = "mean") -> dict[str, Any]:
    """Measure the decisions of a router on clean images and at each level.

    Args:
        scores: The router's scores (levels + 1, images), row 0 clean; higher means more probably degraded.
        switched: Which samples used the patched network, bool (levels + 1, images).
        level_names: The names of the levels.
        mean: The key of the measures over all levels.

    Returns:
        `auroc` of clean images against each level and against all, `false_switch_percent` of clean images that used the
        patched network, and `missed_switch_percent` of degraded ones that did not.
    """
    table, share_switched = ([row.double().cpu().numpy() for row in rows] for rows in (scores, switched))

    def auroc(degraded: np.ndarray) -> float:
        truth = np.r_[np.zeros(len(table[0])), np.ones(degraded.size)]
        return float(roc_auc_score(truth, np.r_[table[0], degraded]))

    by_level = {name: auroc(row) for name, row in zip(level_names, table[1:], strict=True)}
    missed = {name: 100 * float(1 - row.mean()) for name, row in zip(level_names, share_switched[1:], strict=True)}
    return {
        "auroc": {**by_level, mean: auroc(np.concatenate(table[1:]))},
        "false_switch_percent": 100 * float(share_switched[0].mean()),
        "missed_switch_percent": {**missed, mean: 100 * float(1 - np.concatenate(share_switched[1:]).mean())},
    }


def upper_bound(losses: int, images: int) -> float:
    """Return the one-sided 95 % upper confidence bound (Clopper and Pearson) on a share, given `losses` in `images`.

    >>> round(upper_bound(0, 1000), 4)
    0.003
    """
    return 1.0 if losses >= images else float(beta.ppf(CONFIDENCE, losses + 1, images - losses))


def paired_difference(after: Rows, before: Rows) -> Interval:
    """Return the difference between the accuracies of two classifiers on the same images, as shares in [-1, 1].

    An image that was classified in several views counts once, with the mean of its changes, because its views are not
    independent. For a single view the interval is that of Agresti and Min (Simple improved confidence intervals for
    comparing matched proportions, Statistics in Medicine 24, 2005): a normal interval after half an image has been
    added to each of the four combinations of correct and wrong. It is not empty where no prediction has changed. For
    several views the same two images are added. The estimate is the plain difference. Views that differ in length
    count as independent, each with its share of the views.

    Args:
        after: Correct predictions, bool (images,) or (views, images).
        before: Those of the classifier to compare with, of the same shape.

    >>> import torch
    >>> after, before = torch.tensor([True] * 95 + [False] * 5), torch.tensor([True] * 80 + [False] * 20)
    >>> found = paired_difference(after, before)
    >>> round(found.estimate, 2), round(found.low, 3), round(found.high, 3)
    (0.15, 0.076, 0.218)
    """
    if isinstance(after, tuple):
        return _difference_of_unlike_views(after, tuple(before))
    assert isinstance(before, Tensor)
    changes = (after.double() - before.double()).reshape(-1, after.shape[-1]).mean(0)
    images, total = len(changes), changes.sum().item()
    count = images + 2
    centre = total / count
    variance = ((changes**2).sum().item() + 1) / count - centre**2
    reach = _normal_quantile() * (variance / count) ** 0.5
    return Interval(total / images, max(-1.0, centre - reach), min(1.0, centre + reach))


def _difference_of_unlike_views(after: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Interval:
    """Return the difference over views of different lengths; those of one length may be of the same images."""
    estimate = centre = variance = 0.0
    for length in sorted({len(row) for row in after}):
        chosen = [place for place, row in enumerate(after) if len(row) == length]
        found = paired_difference(*(torch.stack([rows[place] for place in chosen]) for rows in (after, before)))
        share = len(chosen) / len(after)
        estimate, centre = estimate + share * found.estimate, centre + share * (found.low + found.high) / 2
        variance += (share * (found.high - found.low) / 2) ** 2
    return Interval(estimate, max(-1.0, centre - variance**0.5), min(1.0, centre + variance**0.5))


def unpaired_difference(after: float, before: float, images: int) -> Interval:
    """Return the difference between two accuracies of which it is not known which images they share.

    The interval is that of Agresti and Caffo (Simple and effective confidence intervals for proportions and differences
    of proportions, The American Statistician 54, 2000): a normal interval after one correct and one wrong image have
    been added to each side. It takes both for independent; where both classifiers were measured on the same images and
    agree on most of them, it is wider than that of `paired_difference`.

    Args:
        after: An accuracy, a share in [0, 1].
        before: The accuracy to compare with.
        images: The number of images of each.

    >>> found = unpaired_difference(0.95, 0.8, 100)
    >>> round(found.estimate, 2), round(found.low, 3), round(found.high, 3)
    (0.15, 0.056, 0.238)
    """
    one, two = ((share * images + 1) / (images + 2) for share in (after, before))
    reach = _normal_quantile() * ((one * (1 - one) + two * (1 - two)) / (images + 2)) ** 0.5
    return Interval(after - before, max(-1.0, one - two - reach), min(1.0, one - two + reach))


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values, such as those of seeds, with Student's interval.

    With one value nothing is known about the spread, and the bounds are infinite.

    >>> found = mean_interval([1.0, 2.0, 3.0])
    >>> found.estimate, round(found.low, 2), round(found.high, 2)
    (2.0, -0.48, 4.48)
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / count**0.5)
    return Interval(mean, mean - reach, mean + reach)


def _normal_quantile() -> float:
    return float(norm.ppf((1 + CONFIDENCE) / 2))
