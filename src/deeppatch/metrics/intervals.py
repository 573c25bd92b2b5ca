"""Confidence intervals in closed form, of shares, of differences between accuracies, and of means over seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, norm, t
from torch import Tensor

from deeppatch.metrics.rates import Rows

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its two-sided 95 % confidence interval, all in the same unit."""

    estimate: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit, such as percent for shares; the factor is above 0."""
        return Interval(factor * self.estimate, factor * self.low, factor * self.high)


def upper_bound(losses: int, images: int) -> float:
    """Return the one-sided 95 % upper confidence bound (Clopper and Pearson) on a share, given `losses` in `images`.

    >>> round(upper_bound(0, 1000), 4)
    0.003
    """
    return 1.0 if losses >= images else float(beta.ppf(CONFIDENCE, losses + 1, images - losses))


def paired_difference(after: Rows, before: Rows, *, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the difference between the accuracies of two classifiers on the same images, as shares in [-1, 1].

    An image that was classified in several views counts once, with the mean of its changes, because its views are not
    independent. For a single view the interval is that of Agresti and Min (Simple improved confidence intervals for
    comparing matched proportions, Statistics in Medicine 24, 2005): a normal interval after half an image has been
    added to each of the four combinations of correct and wrong. It is not empty where no prediction has changed. For
    several views the same two images are added. The estimate is the plain difference. Views of other images count as
    independent, each with its share of the views.

    Args:
        after: Correct predictions, bool (images,) or (views, images).
        before: Those of the classifier to compare with, of the same shape.
        groups: A value for each view of tuples, the same for views of the same images in the same order (default:
            views of one length are of the same images).

    >>> import torch
    >>> after, before = torch.tensor([True] * 95 + [False] * 5), torch.tensor([True] * 80 + [False] * 20)
    >>> found = paired_difference(after, before)
    >>> round(found.estimate, 2), round(found.low, 3), round(found.high, 3)
    (0.15, 0.076, 0.218)
    """
    if isinstance(after, tuple):
        return _difference_of_unlike_views(after, tuple(before), groups or [len(row) for row in after])
    assert isinstance(before, Tensor)
    changes = (after.double() - before.double()).reshape(-1, after.shape[-1]).mean(0)
    images, total = len(changes), changes.sum().item()
    count = images + 2
    centre = total / count
    variance = ((changes**2).sum().item() + 1) / count - centre**2
    reach = _normal_quantile() * (variance / count) ** 0.5
    return Interval(total / images, max(-1.0, centre - reach), min(1.0, centre + reach))


def counted_difference(gained: int, lost: int, images: int) -> Interval:
    """Return the difference of `paired_difference` for one view, from what has changed.

    Args:
        gained: The number of images that became correct.
        lost: The number of images that became wrong.
        images: The number of all images.

    >>> round(counted_difference(17, 2, 100).estimate, 2)
    0.15
    """
    place = torch.arange(images)  # an image that is right twice counts as one that is wrong twice
    return paired_difference(place < gained, (place >= gained) & (place < gained + lost))


def _difference_of_unlike_views(
    after: tuple[Tensor, ...], before: tuple[Tensor, ...], groups: Sequence[Hashable]
) -> Interval:
    """Return the difference over views of several groups, of which one has views of the same images."""
    estimate = centre = variance = 0.0
    for group in dict.fromkeys(groups):
        chosen = [place for place, each in enumerate(groups) if each == group]
        found = paired_difference(*(torch.stack([rows[place] for place in chosen]) for rows in (after, before)))
        if len(chosen) == len(after):
            return found
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
