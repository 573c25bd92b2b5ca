"""The measures of one network in one row of a ledger's tables: in closed form for a view, by bootstrap for a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm

from deeppatch import metrics
from deeppatch.ledger.pools import ALL, Pool
from deeppatch.ledger.records import CLEAN, MIXED, LedgerView, Outcomes
from deeppatch.metrics import Interval, PairedSamples, interval_of

Measured = Iterator[tuple[str, Interval]]
OVER_SEEDS = ("accuracy", "change", "repair", "break")
AGAINST_BASE = ("change", "repair", "break", "repair_rate", "backward_trust", "backward_error")


@dataclass(frozen=True)
class Answered:
    """What a network and the base answered on one view."""

    view: LedgerView
    own: Outcomes
    base: Outcomes | None
    classes: int

    @property
    def correct(self) -> np.ndarray:
        """Which rows the network classifies correctly, bool (N,)."""
        found: np.ndarray = self.own.prediction == self.view.labels
        return found

    @property
    def before(self) -> np.ndarray | None:
        """Which rows the base classifies correctly; None of the base itself."""
        return None if self.base is None else self.base.prediction == self.view.labels


def of_view(answered: Answered, *, brief: bool = False) -> Measured:
    """Yield the measures of a single view with closed-form intervals; `brief` leaves out what is for clean and mixed.

    Shares have exact intervals (Clopper and Pearson), the change that of `metrics.paired_difference`, which is not
    empty where no prediction has changed. Bounds are nan where a measure has none.
    """
    correct, labels, images = answered.correct, answered.view.labels, len(answered.view)
    yield "accuracy", _share(int(correct.sum()), images)
    if (before := answered.before) is not None:
        yield from _changes(answered, correct, before, brief=brief)
    yield "worst_class", _only(metrics.worst_class(correct, labels, answered.classes).value)
    yield "nll", _mean(-answered.own.log_likelihood)
    yield "brier", _mean(answered.own.brier)
    for measure, binning in (("ece", "width"), ("ece_mass", "mass")):
        yield measure, _only(metrics.calibration_error(answered.own.confidence, correct, binning).ece)


def _changes(answered: Answered, correct: np.ndarray, before: np.ndarray, *, brief: bool) -> Measured:
    found = metrics.count_changes(correct, before)
    right, old = found.images - found.wrong, found.wrong - found.repaired
    yield "change", metrics.paired_difference(torch.from_numpy(correct), torch.from_numpy(before)).scaled(100)
    yield "repair", _share(found.repaired, found.images)
    yield "break", _share(found.broken, found.images)
    yield "repair_rate", _share(found.repaired, found.wrong)
    if brief:
        return
    assert answered.base is not None
    yield "backward_trust", _share(right - found.broken, right)
    yield "backward_error", _share(old, old + found.broken) if old + found.broken else Interval(100, 0, 100)
    changed = answered.own.prediction != answered.base.prediction
    yield "flips", _share(int(changed.sum()), found.images)
    drop = metrics.largest_class_drop(correct, before, answered.view.labels, answered.classes)
    yield "largest_class_drop", _only(drop.value)
    yield "mcnemar_p", _only(metrics.mcnemar(found.repaired, found.broken, found.images).p)


def mean_change(views: Sequence[LedgerView], after: Sequence[Outcomes], before: Sequence[Outcomes]) -> Interval:
    """Return the accuracy gained in the mean over views, in points, with the interval of `metrics.paired_difference`.

    An image counts once, with all its views, as in the reports of other stages; views of other images are independent.
    """
    now, was = (
        tuple(torch.from_numpy(each.prediction == view.labels) for view, each in zip(views, outcomes, strict=True))
        for outcomes in (after, before)
    )
    return metrics.paired_difference(now, was, groups=[view.image.tobytes() for view in views]).scaled(100)


def of_mean(samples: PairedSamples, network: str, pool: Pool, change: Interval | None = None) -> Measured:
    """Yield the measures of a mean over views with intervals of the paired bootstrap over images.

    Only that of the change is another, `change`, where it is given. Each view counts the same. mCE is over the types of
    the pool, but for those on which the base makes no errors, and the relative one where all 15 are there.
    """
    accuracy = samples.interval("accuracy", network, pool.views)
    yield "accuracy", accuracy
    if pool.name == ALL:
        yield "mean_corruption_error", Interval(100 - accuracy.estimate, 100 - accuracy.high, 100 - accuracy.low)
    if network == samples.base:
        return
    found = {name: samples.interval(name, network, pool.views) for name in AGAINST_BASE}
    found["change"] = change or found["change"]
    before = float(samples.samples("accuracy", samples.base, pool.views)[0])
    after = before + found["change"].estimate
    metrics.check_identity(before, after, found["repair_rate"].estimate, found["break"].estimate, 1e-3)
    yield from found.items()
    ratios = [samples.samples("corruption_error", network, views) for views in pool.kinds.values()]
    defined = [each for each in ratios if not np.isnan(each[0])]
    yield ("mce" if len(ratios) > 1 else "corruption_error"), interval_of(np.mean(defined or ratios, axis=0))
    if pool.name == ALL and CLEAN in samples.views:
        yield "relative_mce", _only(_relative_mce(samples, network, pool))


def of_seeds(samples: PairedSamples, networks: Sequence[str], pool: Pool) -> Measured:
    """Yield the means over the networks of one method that differ by seed, over resampled seeds and images."""
    for measure in OVER_SEEDS:
        each = np.stack([samples.samples(measure, network, pool.views) for network in networks], axis=1)
        if not np.isnan(each).any():
            yield measure, interval_of(metrics.over_seeds_and_images(each))


def calibration_intervals(
    view: LedgerView, outcomes: Mapping[str, Outcomes], draws: int
) -> dict[tuple[str, str], Interval]:
    """Return the ECE of each network on a view, with both binnings, by network and measure."""
    sure = {name: each.confidence for name, each in outcomes.items()}
    correct = {name: each.prediction == view.labels for name, each in outcomes.items()}
    found: dict[tuple[str, str], Interval] = {}
    for measure, binning in (("ece", "width"), ("ece_mass", "mass")):
        samples = metrics.resampled_ece(sure, correct, view.image, binning, draws)
        found |= {(name, measure): interval_of(each) for name, each in samples.items()}
    return found


def needs_calibration_intervals(pool: Pool) -> bool:
    """Tell whether the ECE of a row has an interval: that of clean images and of the mixed stream."""
    return pool.name in (CLEAN, MIXED)


def _relative_mce(samples: PairedSamples, network: str, pool: Pool) -> float:
    def errors(name: str, views: tuple[str, ...]) -> float:
        return 100 - float(samples.samples("accuracy", name, views)[0])

    own, base = ({kind: errors(name, views) for kind, views in pool.kinds.items()} for name in (network, samples.base))
    clean = [errors(name, (CLEAN,)) for name in (network, samples.base)]
    return metrics.relative_corruption_error(own, clean[0], base, clean[1]).mean


def _share(count: int, total: int) -> Interval:
    return metrics.share_interval(count, total).scaled(100)


def _mean(values: np.ndarray) -> Interval:
    """Return a mean with its normal interval."""
    mean = float(values.mean())
    reach = (
        float(norm.ppf((1 + metrics.CONFIDENCE) / 2) * values.std(ddof=1) / len(values) ** 0.5)
        if len(values) > 1
        else math.inf
    )
    return Interval(mean, mean - reach, mean + reach)


def _only(value: float) -> Interval:
    return Interval(value, math.nan, math.nan)
