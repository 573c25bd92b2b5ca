"""Measures of a ledger as one tidy table: of each network on each view, and on means over views."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from deeppatch import metrics
from deeppatch.data.corruption_names import BENCHMARK, GROUPS
from deeppatch.ledger import measures
from deeppatch.ledger.measures import Answered
from deeppatch.ledger.pools import ALL, BLURRED, DEGRADED, HELD_OUT, Pool, pools
from deeppatch.ledger.records import CLEAN, MIXED, LedgerView, Outcomes
from deeppatch.metrics import Interval, PairedSamples
from deeppatch.metrics.corruption_errors import ROUNDING

COLUMNS = ("network", "view", "severity", "measure", "estimate", "low", "high", "n")
TITLES = {"repair": "repaired", "break": "newly wrong"}  # of columns of the table that are measures


def frame(
    base: str,
    networks: Sequence[str],
    views: Sequence[LedgerView],
    outcomes: Mapping[tuple[str, str], Outcomes],
    *,
    classes: int,
    seeds: Mapping[str, Sequence[str]] | None = None,
    draws: int = metrics.DRAWS,
) -> pd.DataFrame:
    """Return one row for each network, view and measure: estimate, 95 % interval, and the number of images.

    Measures are those of `metrics.DEFINITIONS`. Intervals of a single view, and of changes in accuracy, are in closed
    form; the others of a mean over views are of a bootstrap that draws images with all their views, and all networks by
    the same draws.

    Args:
        base: The network that the others are compared with.
        networks: The names of the networks, in order.
        views: The views.
        outcomes: The outcomes by network and view.
        classes: The number of classes.
        seeds: The networks of one method that differ by seed, by the name of the row that has their mean.
        draws: The number of draws of the bootstrap.
    """
    rows: list[dict[str, Any]] = []
    found = pools(views)
    named = {view.name: view for view in views}
    samples = _samples(base, networks, named, outcomes, found, draws)
    for pool in found:
        images = len(np.unique(np.concatenate([named[name].image for name in pool.views])))
        there = [name for name in networks if all((name, view) in outcomes for view in pool.views)]
        single = {name: outcomes[name, pool.views[0]] for name in there}
        sure = {}
        if measures.needs_calibration_intervals(pool) and there:
            sure = measures.calibration_intervals(named[pool.views[0]], single, draws)
        tests: dict[str, float] = {}
        for network in there:
            for measure, interval in _measured(pool, network, base, named, outcomes, classes, samples):
                bounds = sure.get((network, measure), interval)
                rows.append(_row(network, pool, measure, bounds, images))
                if measure == "mcnemar_p":
                    tests[network] = interval.estimate
        if pool.severity == 0:
            rows += [
                _row(name, pool, measure, interval, images)
                for name, members in (seeds or {}).items()
                for measure, interval in measures.of_seeds(samples, members, pool)
            ]
        rows += [
            _row(network, pool, "holm_p", Interval(p, math.nan, math.nan), images)
            for network, p in metrics.holm(tests).items()
            if len(tests) > 1
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each network: accuracy on clean images and in the mean of groups of views, and changes.

    `repaired` and `newly wrong` are those of the mixed stream, or of clean images where there is no other.
    """
    means = tidy[tidy.severity == 0]
    names = columns_of(list(dict.fromkeys(means["view"])))
    stream = changes_view(tidy)
    rows = {}
    for network, own in means.groupby("network", sort=False):
        values = {(row["view"], row["measure"]): float(row["estimate"]) for row in own.to_dict("records")}
        rows[network] = {name: values.get((name, "accuracy"), math.nan) for name in names}
        rows[network] |= {title: values.get((stream, measure), math.nan) for measure, title in TITLES.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def columns_of(there: Sequence[str]) -> list[str]:
    """Return which means a table shows, of those that there are: types where no group and no blur is there."""
    wanted = [CLEAN, BLURRED, *GROUPS, ALL, HELD_OUT, MIXED]
    names = [each for each in wanted if each in there]
    if not set(there) & {BLURRED, *GROUPS}:
        names[1:1] = [each for each in there if each not in {*wanted, DEGRADED}]
    return names


def changes_view(tidy: pd.DataFrame) -> str:
    """Return the view whose repaired and newly wrong images stand for a network: mixed, or clean without it."""
    return MIXED if MIXED in set(tidy["view"]) else CLEAN


def numbers(tidy: pd.DataFrame, network: str, size: int | None) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Return what requirements on a network are compared with: estimate and interval by name and severity.

    That is the accuracy gained over the base, in points; `flips`, the newly wrong images of the mixed stream (of clean
    images where there is no other), in percent; and `bytes`, which is `size`, where that is known.
    """
    own = tidy[tidy.network == network]
    stream = changes_view(tidy)
    found: dict[tuple[str, int], tuple[float, float, float]] = {}
    for row in own.to_dict("records"):
        values = (float(row["estimate"]), float(row["low"]), float(row["high"]))
        if row["measure"] == "change":
            found[str(row["view"]), int(row["severity"])] = values
        elif row["measure"] == "break" and row["view"] == stream:
            found["flips", 0] = values
    return found if size is None else {**found, ("bytes", 0): (float(size),) * 3}


def accuracies(tidy: pd.DataFrame, network: str) -> dict[str, float]:
    """Return a network's accuracies in percent by view: clean, means and types."""
    own = tidy[(tidy.network == network) & (tidy.severity == 0) & (tidy.measure == "accuracy")]
    return dict(zip(map(str, own["view"]), map(float, own["estimate"]), strict=True))


def left_out(accuracy: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Return the types that mCE and relative mCE over the 15 types leave out, by measure, where there are some.

    Relative to a base that makes no errors on a type, or no more than on clean images, errors have no number.

    Args:
        accuracy: The accuracies of the base, in percent, by view: clean, means, and types.

    >>> left_out({**dict.fromkeys(BENCHMARK, 50.0), "all": 50.0, "clean": 90.0, "fog": 100.0, "snow": 90.0})
    {'mce': ('fog',), 'relative_mce': ('snow', 'fog')}
    """
    types = [kind for kind in BENCHMARK if kind in accuracy and ALL in accuracy]
    best = {"mce": 100.0, "relative_mce": accuracy.get(CLEAN, 100.0)}
    found = {
        measure: tuple(kind for kind in types if bound - accuracy[kind] <= ROUNDING) for measure, bound in best.items()
    }
    return {measure: kinds for measure, kinds in found.items() if kinds}


def _measured(
    pool: Pool,
    network: str,
    base: str,
    views: Mapping[str, LedgerView],
    outcomes: Mapping[tuple[str, str], Outcomes],
    classes: int,
    samples: PairedSamples,
) -> Iterator[tuple[str, Interval]]:
    def answered(name: str) -> Answered:
        before = None if network == base else outcomes.get((base, name))
        return Answered(views[name], outcomes[network, name], before, classes)

    if pool.single:
        yield from measures.of_view(answered(pool.views[0]), brief=pool.severity > 0)
        return
    pairs = [(outcomes[network, name], outcomes.get((base, name))) for name in pool.views]
    before = [was for _now, was in pairs if was is not None]
    change = None
    if network != base and len(before) == len(pairs):
        change = measures.mean_change([views[name] for name in pool.views], [now for now, _was in pairs], before)
    yield from measures.of_mean(samples, network, pool, change)


def _samples(
    base: str,
    networks: Sequence[str],
    views: Mapping[str, LedgerView],
    outcomes: Mapping[tuple[str, str], Outcomes],
    found: Sequence[Pool],
    draws: int,
) -> PairedSamples:
    """Return the bootstrap of the views that are in some mean, of clean ones and of the mixed stream."""
    needed = {name for pool in found if pool.severity == 0 for name in pool.views}
    correct = {
        network: {
            name: outcomes[network, name].prediction == views[name].labels
            for name in needed
            if (network, name) in outcomes
        }
        for network in networks
    }
    return metrics.paired_samples(
        correct, {name: view.image for name, view in views.items() if name in needed}, base, draws=draws
    )


def _row(network: str, pool: Pool, measure: str, interval: Interval, images: int) -> dict[str, Any]:
    values = (network, pool.name, pool.severity, measure, interval.estimate, interval.low, interval.high, images)
    return dict(zip(COLUMNS, values, strict=True))
