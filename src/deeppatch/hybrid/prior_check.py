"""Check whether only the shares of the classes differ between val and a pool, by what a network says of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from deeppatch.hybrid.prior_draws import DRAWS, Draws
from deeppatch.metrics.logit_scaling import Calibration

LEVEL = 0.05  # of a test over all classes, and of the check as a whole
CELLS, PROCESSES = 100, 4000  # in which distributions are compared, and that are simulated for their distance
# the distance that means nothing, however many images there are; and that which is never chance, with enough images of
# val and pool (else in units of the deviation of such a distance)
NEGLIGIBLE, LARGE, LARGE_DEVIATIONS = 0.03, 0.25, 2.5


@dataclass(frozen=True)
class Comparison:
    """How a statistic of images is distributed in a pool, and how it would be if only the shares of classes differed.

    Args:
        name: What was compared, in words.
        at: The value below which the shares of images differ most.
        observed: The share of the pool below it.
        expected: The share of val, weighted to the prior of the pool, below it.
        bound: The largest difference that is not held against the pool.
    """

    name: str
    at: float
    observed: float
    expected: float
    bound: float

    @property
    def distance(self) -> float:
        """The Kolmogorov-Smirnov distance."""
        return abs(self.observed - self.expected)

    @property
    def contradiction(self) -> str:
        """What contradicts a shift of classes alone, in words; '' where nothing does."""
        if self.distance <= self.bound:
            return ""
        return (
            f"for {100 * self.observed:.1f} % of the pool the {self.name} is at most {self.at:.3g}, while it would be "
            f"for {100 * self.expected:.1f} % if only the shares of the classes differed"
        )


def statistics_of(calibration: Calibration, logits: Tensor) -> dict[str, Tensor]:
    """Return the statistics of images that are compared, each float64 (N,), from their logits (N, C)."""
    return {
        "confidence": calibration.posteriors(logits).amax(1).cpu(),
        "logsumexp of the logits": logits.double().logsumexp(1).cpu(),
    }


def compare_distributions(
    calibration: Calibration,
    val: tuple[Tensor, Tensor],
    pool_logits: Tensor,
    pool: Tensor,
    draws: Draws,
    generator: torch.Generator,
) -> list[Comparison]:
    """Compare the distributions of statistics of the network's output in a pool and in val, weighted to its prior.

    If only the shares of the classes differ, any function of an image is distributed in the pool as it is in val with
    classes weighted to these shares: F(t) = sum_y q_y F_y(t). The largest difference of both (Kolmogorov and Smirnov)
    is compared with that of Gaussian processes that have the covariance which F and sum_y q_y F_y differ with in the
    bootstrap draws, in which val, pool, calibration and q are drawn anew (Rabanser, Guennemann and Lipton, "Failing
    loudly: an empirical study of methods for detecting dataset shift", NeurIPS 2019, test the softmax outputs so, for
    a shift of any kind). Bonferroni over the statistics, at half of LEVEL. A class of which val has no image is taken
    to be like val as a whole, and its share is allowed to differ.

    Args:
        calibration: The calibration of the network.
        val: Logits (M, C) and classes (M,) of val.
        pool_logits: Logits (N, C) of the pool.
        pool: The prior of the pool, (C,).
        draws: The bootstrap draws of the same images.
        generator: The source of the processes, on the CPU.
    """
    labels = val[1].cpu()
    unknown = float(pool[labels.bincount(minlength=len(pool)) == 0].sum())
    largest = max(LARGE, LARGE_DEVIATIONS * math.sqrt(1 / len(labels) + 1 / len(pool_logits)))
    parts = [statistics_of(calibration, each) for each in (val[0], pool_logits)]
    found = []
    for name, of_val in parts[0].items():
        of_pool = parts[1][name]
        ends = _ends_of_cells(of_val, of_pool)
        cells = [torch.searchsorted(ends, each) for each in (of_val, of_pool)]  # cell k is up to end k
        observed = cells[1].bincount(minlength=len(ends) + 1).double().cumsum(0) / len(of_pool)
        by_class = _by_class(cells[0], labels, torch.ones(1, len(labels)).double(), len(pool), len(ends) + 1)[0]
        expected = pool @ by_class
        part = cells[1][draws.images]
        centre = part.bincount(minlength=len(ends) + 1).double().cumsum(0) / len(part)
        deviations = draws.pool_scale * (_cumulated(part, draws.pool_counts, len(ends) + 1) - centre)
        deviations -= draws.priors @ by_class - expected
        deviations -= pool @ (_by_class(cells[0], labels, draws.val_counts, len(pool), len(ends) + 1) - by_class)
        chance = _bound(deviations, LEVEL / 2 / len(parts[0]), generator) + unknown
        bound = min(math.hypot(chance, NEGLIGIBLE), largest)
        most = int((observed - expected)[:-1].abs().argmax())
        found.append(Comparison(name, float(ends[most]), float(observed[most]), float(expected[most]), bound))
    return found


def _ends_of_cells(of_val: Tensor, of_pool: Tensor) -> Tensor:
    """Return up to CELLS values that cut both samples, each counted alike, in cells of equal shares."""
    shares = torch.arange(1, CELLS + 1, dtype=torch.float64) / (CELLS + 1)
    sampled = [_quantiles(each, shares[::2] if index else shares[1::2]) for index, each in enumerate((of_val, of_pool))]
    return torch.cat(sampled).unique()


def _quantiles(values: Tensor, shares: Tensor) -> Tensor:
    return values.sort().values[(shares * len(values)).long().clamp(max=len(values) - 1)]


def _cumulated(cells: Tensor, counts: Tensor, number: int) -> Tensor:
    """Return the share of images up to each cell, (K, number), for weights (K, N)."""
    found = torch.zeros(len(counts), number, dtype=torch.float64).index_add_(1, cells, counts)
    return found.cumsum(1) / counts.sum(1, keepdim=True)


def _by_class(cells: Tensor, labels: Tensor, counts: Tensor, classes: int, number: int) -> Tensor:
    """Return the share of each class up to each cell, (K, C, number), with one image more of each, as all val is."""
    found = torch.zeros(len(counts), classes * number, dtype=torch.float64)
    found = found.index_add_(1, labels * number + cells, counts).view(-1, classes, number)
    overall = found.sum(1, keepdim=True) / counts.sum(1).view(-1, 1, 1)
    return ((found + overall) / (found.sum(2, keepdim=True) + 1)).cumsum(2)


def _bound(deviations: Tensor, level: float, generator: torch.Generator) -> float:
    """Return what the largest of a Gaussian process with the covariance of draws (K, T) exceeds at a level."""
    weights = torch.randn(PROCESSES, len(deviations), dtype=torch.float64, generator=generator)
    largest = (weights @ deviations).abs().amax(1) / len(deviations) ** 0.5
    return float(largest.sort().values[int((1 - level) * PROCESSES)])


def contradiction_of_predictions(
    confusion: Tensor, predicted: Tensor, pool: Tensor, deviation: Tensor, generator: torch.Generator
) -> str:
    """Say where predictions for the pool contradict its estimated prior, whose deviation is given (C,); else ''.

    `confusion` (C, C) are numbers of images of val by predicted and true class, `predicted` (C,) those of the pool.
    """
    classes = len(pool)
    counts = [_multinomial(each.flatten(), generator) for each in (confusion, predicted)]
    expected, observed = _predicted_at(confusion, pool), predicted / predicted.sum()
    drawn = _predicted_at(counts[0].view(-1, classes, classes), pool) - counts[1] / predicted.sum()
    bound = float(norm.ppf(1 - LEVEL / 2 / (2 * classes)))
    allowed = bound * (drawn.std(0) + _rates(confusion) @ deviation)
    allowed += (pool / (confusion.sum(0) + 1)).sum()  # one image more or less of each class in val means nothing
    apart = (expected - observed).abs() - allowed
    if not bool((apart > 0).any()):
        return ""
    index = int(apart.argmax())
    return (
        f"{100 * observed[index]:.1f} % of the pool are predicted as class {index}, while "
        f"{100 * expected[index]:.1f} % would be if only the shares of the classes differed"
    )


def _predicted_at(confusion: Tensor, prior: Tensor) -> Tensor:
    """Return how often each class would be predicted at a prior, (..., C)."""
    return _rates(confusion) @ prior


def _rates(confusion: Tensor) -> Tensor:
    """Return P(predicted | class), (..., C, C), with one image more of each class, predicted as images of val are."""
    overall = confusion.sum(-1, keepdim=True) / confusion.sum((-2, -1), keepdim=True)
    return (confusion + overall) / (confusion.sum(-2, keepdim=True) + 1)


def _multinomial(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Return DRAWS of as many images as `counts` (K,) has, in its proportions, as numbers (DRAWS, K)."""
    total = int(counts.sum())
    cells = [torch.multinomial(counts, total, replacement=True, generator=generator) for _ in range(DRAWS)]
    return torch.stack([each.bincount(minlength=len(counts)) for each in cells]).double()
