"""Exact tests and bounds for two networks on the same images, over seeds, and for several networks at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

from deeppatch.errors import UserError
from deeppatch.metrics.intervals import CONFIDENCE, Interval


class McNemar(NamedTuple):
    """McNemar's test of one view, and the difference with its standard error, as shares of the images."""

    p: float
    mid_p: float
    difference: float
    standard_error: float


def mcnemar(repaired: int, broken: int, images: int) -> McNemar:
    """Test whether two networks are correct equally often on the images of a single view.

    Exact: p = min(1, 2 P(Bin(b + c, 1/2) <= min(b, c))), 1 where nothing changed; mid-p takes P(= min) off. The
    difference is (c - b) / n with standard error sqrt(b + c - (b - c)^2 / n) / n (McNemar, Psychometrika 12, 1947;
    Fagerland et al., BMC Medical Research Methodology 13:91, 2013). Images with several rows are not independent: use
    the bootstrap there.

    Args:
        repaired: The number of images that are wrong before and correct after, c.
        broken: The number that are correct before and wrong after, b.
        images: The number of all images, n.

    Raises:
        UserError: When the counts are not those of so many images.

    >>> found = mcnemar(repaired=15, broken=5, images=100)
    >>> round(found.p, 4), round(found.mid_p, 4), found.difference, round(found.standard_error, 4)
    (0.0414, 0.0266, 0.1, 0.0436)
    """
    changed = repaired + broken
    if min(repaired, broken) < 0 or not max(changed, 1) <= images:
        raise UserError(f"{repaired} repaired and {broken} broken of {images} images: that cannot be")
    fewer = min(repaired, broken)
    tail = 2 * float(binom.cdf(fewer, changed, 0.5))
    point = float(binom.pmf(fewer, changed, 0.5))
    error = max(0.0, changed - (broken - repaired) ** 2 / images) ** 0.5 / images
    return McNemar(min(1.0, tail), min(1.0, tail - point), (repaired - broken) / images, error)


def share_interval(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Return a share with its exact two-sided interval (Clopper and Pearson, Biometrika 26, 1934).

    Its bounds are one-sided ones of half the error each, such as RR's c of w and NFR's b of n. Without any image the
    estimate is nan and nothing is known.

    >>> found = share_interval(3, 100)
    >>> found.estimate, round(found.low, 4), round(found.high, 4)
    (0.03, 0.0062, 0.0852)
    """
    if not total:
        return Interval(math.nan, 0.0, 1.0)
    one_sided = (1 + confidence) / 2
    return Interval(count / total, lower_share(count, total, one_sided), upper_share(count, total, one_sided))


def lower_share(count: int, total: int, confidence: float = CONFIDENCE) -> float:
    """Return the exact one-sided lower bound of a share (Clopper and Pearson).

    >>> round(lower_share(97, 100), 4)
    0.9243
    """
    return 0.0 if count <= 0 else float(beta.ppf(1 - confidence, count, total - count + 1))


def upper_share(count: int, total: int, confidence: float = CONFIDENCE) -> float:
    """Return the exact one-sided upper bound of a share (Clopper and Pearson); `upper_bound` is that of 95 %."""
    return 1.0 if count >= total else float(beta.ppf(confidence, count + 1, total - count))


class NonInferiority(NamedTuple):
    """Whether a loss is shown to be at most a margin; all three are shares of the images, the bound one-sided."""

    loss: float
    upper: float
    margin: float

    @property
    def shown(self) -> bool:
        """Whether the upper bound of the loss is at most the margin."""
        return self.upper <= self.margin


def non_inferiority(
    repaired: int, broken: int, images: int, margin: float, confidence: float = CONFIDENCE
) -> NonInferiority:
    """Bound the loss (b - c) / n of accuracy on a single view from above, and compare it with a margin named before.

    The bound is that of the score test for paired shares (Tango, Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design, Statistics in Medicine 17, 1998). Unlike a normal interval
    it is not empty where nothing changed: z^2 / (n + z^2).

    Args:
        repaired: The number of images that are wrong before and correct after, c.
        broken: The number that are correct before and wrong after, b.
        images: The number of all images, n.
        margin: The largest loss that is accepted, a share.
        confidence: That of the one-sided bound.

    Raises:
        UserError: When the counts are not those of so many images.

    >>> found = non_inferiority(repaired=4, broken=20, images=10_000, margin=0.003)
    >>> found.loss, round(found.upper, 5), found.shown
    (0.0016, 0.00252, True)
    """
    mcnemar(repaired, broken, images)  # checks the counts
    loss, z = (broken - repaired) / images, float(norm.ppf(confidence))

    def score(bound: float) -> float:
        """How many standard errors the loss lies above a bound, plus z."""
        quadratic = 2 * images
        linear = (2 * images - broken + repaired) * bound - broken - repaired
        constant = -repaired * bound * (1 - bound)
        rare = ((max(0.0, linear**2 - 4 * quadratic * constant)) ** 0.5 - linear) / (2 * quadratic)
        variance = images * (2 * rare + bound * (1 - bound))
        return (broken - repaired - images * bound) / variance**0.5 + z if variance > 0 else z

    if broken == images:
        return NonInferiority(loss, 1.0, margin)
    return NonInferiority(loss, float(brentq(score, loss, 1 - 1e-12, xtol=1e-12)), margin)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for their number, so that all that are at most 0.05 hold together with 95 %.

    The k-th smallest of m is multiplied by m - k + 1, and none may be below a smaller one (Holm, A simple sequentially
    rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979).

    >>> holm({"norms": 0.01, "surgical": 0.04, "interpolate": 0.03})
    {'norms': 0.03, 'surgical': 0.06, 'interpolate': 0.06}
    """
    largest, adjusted = 0.0, {}
    for index, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - index) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


class Seeds(NamedTuple):
    """The mean over the seeds of a method, the sample deviation (nan for one seed), and the number of seeds."""

    mean: float
    deviation: float
    seeds: int


def over_seeds(values: Sequence[float]) -> Seeds:
    """Return mean, sample standard deviation (division by n - 1) and number of values, one for each seed.

    >>> over_seeds([1.0, 2.0, 3.0])
    Seeds(mean=2.0, deviation=1.0, seeds=3)
    """
    if not len(values):
        raise UserError("a mean over seeds needs at least one seed")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Seeds(float(np.mean(values)), deviation, len(values))
