"""Measures of a ledger as one tidy table: of each network on each view, and on means over views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from deeppatch import metrics
from deeppatch.data.corruption_names import BENCHMARK, GROUPS
from deeppatch.ledger.records import CLEAN, MIXED, LedgerView, Outcomes
from deeppatch.ledger.streams import GAUSSION
from deeppatch.metrics import Interval

COLUMNS = ("network", "view", "severity", "measure", "estimate", "low", "high", "n")
BLURRED, ALL, DEGRADED, HELD_OUT = "blurred", "all", "degraded", "held out"
ACCURACY, GAINED, REPAIRED, BROKEN = "accuracy", "gained", "repaired", "newly wrong"
DEFINITIONS = {
    ACCURACY: "the share of images whose predicted class is the true one, in percent",
    GAINED: "accuracy minus that of the base network on the same images, in percentage points",
    REPAIRED: "images that the base network gets wrong and this one right, in percent of all images",
    BROKEN: "images that the base network gets right and this one wrong, in percent of all images",
}

VIEWS = {
    CLEAN: "the test images as they are",
    BLURRED: "the mean over the levels of the published blur (gaussion)",
    **{group: f"the mean over the measured types and severities of {', '.join(GROUPS[group])}" for group in GROUPS},
    ALL: "the mean over the 15 types of corruptions and their measured severities",
    DEGRADED: "the mean over all levels of all degradations that are not held out",
    HELD_OUT: "the mean over the levels of the degradations that nothing was trained or calibrated on",
    MIXED: "every test image once, shuffled, degraded with probability 1/2 at a random level",
}


@dataclass(frozen=True)
class Pool:
    """Views whose mean is one row: the name of the mean, its severity where it is a single view, and the views."""

    name: str
    severity: int
    views: tuple[str, ...]


def pools(views: Sequence[LedgerView]) -> list[Pool]:
    """Return clean, the means over views, mixed, and then each single view.

    Means are over levels: `blurred` of the published blur, each group, `all` of the 15 types at all measured severities
    where all 15 are there, `degraded` over all that was not held out and `held out` over the others, and each type.
    """
    degraded = [view for view in views if view.degraded]
    found = [Pool(view.name, 0, (view.name,)) for view in views if view.kind == CLEAN]
    named: dict[str, list[LedgerView]] = {BLURRED: [view for view in degraded if view.kind == GAUSSION]}
    named |= {group: [view for view in degraded if view.group == group] for group in GROUPS}
    complete = set(BENCHMARK) <= {view.kind for view in degraded}
    named[ALL] = [view for view in degraded if view.kind in BENCHMARK] if complete else []
    named[DEGRADED] = [view for view in degraded if not view.held_out]
    named[HELD_OUT] = [view for view in degraded if view.held_out]
    found += [Pool(name, 0, tuple(view.name for view in members)) for name, members in named.items() if members]
    found += [Pool(view.name, 0, (view.name,)) for view in views if view.kind == MIXED]
    for kind in dict.fromkeys(view.kind for view in degraded):
        found.append(Pool(kind, 0, tuple(view.name for view in degraded if view.kind == kind)))
    return found + [Pool(view.kind, view.severity, (view.name,)) for view in degraded]


def frame(
    base: str, networks: Sequence[str], views: Sequence[LedgerView], outcomes: Mapping[tuple[str, str], Outcomes]
) -> pd.DataFrame:
    """Return one row for each network, view and measure: estimate, and 95 % interval, with the number of images.

    An image counts once in an interval, however many views show it, as in `metrics.paired_difference`.

    Args:
        base: The network that the others are compared with.
        networks: The names of the networks, in order.
        views: The views.
        outcomes: The outcomes by network and view.
    """
    labels = {view.name: view.labels for view in views}
    correct = {key: torch.from_numpy(each.prediction == labels[key[1]]) for key, each in outcomes.items()}
    sizes = {view.name: view.image for view in views}
    rows: list[dict[str, Any]] = []
    for pool in pools(views):
        images = len(np.unique(np.concatenate([sizes[name] for name in pool.views])))
        for network in networks:
            if not all((network, name) in correct for name in pool.views):
                continue
            known = all((base, name) in correct for name in pool.views)
            after = [correct[network, name] for name in pool.views]
            before = [correct[base, name] for name in pool.views] if known and network != base else None
            for measure, found in _measures(after, before):
                interval = found.scaled(100)
                bounds = (interval.estimate, interval.low, interval.high)
                values = (network, pool.name, pool.severity, measure, *bounds, images)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each network: accuracy on clean images and in the mean of groups of views, and changes.

    `repaired` and `newly wrong` are those of the mixed stream, or of clean images where there is no other.
    """
    wanted = [CLEAN, BLURRED, *GROUPS, ALL, HELD_OUT, MIXED]
    means = tidy[tidy.severity == 0]
    there = set(means.view)
    kinds = [each for each in dict.fromkeys(means.view) if each not in {*wanted, DEGRADED}]
    plain = not there & {BLURRED, *GROUPS}
    names = [each for each in wanted if each in there]
    names[1:1] = kinds if plain else []
    rows = {network: _row(own, names, MIXED if MIXED in there else CLEAN)
            for network, own in means.groupby("network", sort=False)}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def numbers(tidy: pd.DataFrame, network: str, size: int) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Return what requirements on a network are compared with: estimate and interval by name and severity.

    That is the accuracy gained over the base, in points; `flips`, the newly wrong images of the mixed stream (of clean
    images where there is no other), in percent; and `bytes`, which is `size`.
    """
    own = tidy[tidy.network == network]
    stream = MIXED if MIXED in set(tidy.view) else CLEAN
    found: dict[tuple[str, int], tuple[float, float, float]] = {}
    for row in own.to_dict("records"):
        values = (float(row["estimate"]), float(row["low"]), float(row["high"]))
        if row["measure"] == GAINED:
            found[str(row["view"]), int(row["severity"])] = values
        elif row["measure"] == BROKEN and row["view"] == stream:
            found["flips", 0] = values
    return {**found, ("bytes", 0): (float(size),) * 3}


def _row(own: pd.DataFrame, names: Sequence[str], changes: str) -> dict[str, float]:
    values = own.set_index(["view", "measure"])["estimate"]
    row = {name: float(values.get((name, ACCURACY), np.nan)) for name in names}
    return row | {measure: float(values.get((changes, measure), np.nan)) for measure in (REPAIRED, BROKEN)}


def _measures(after: list[torch.Tensor], before: list[torch.Tensor] | None) -> Iterator[tuple[str, Interval]]:
    yield ACCURACY, _share(after)
    if before is None:
        return
    yield GAINED, metrics.paired_difference(metrics.rows_of(after), metrics.rows_of(before))
    yield REPAIRED, _share([now & ~then for now, then in zip(after, before, strict=True)])
    yield BROKEN, _share([then & ~now for now, then in zip(after, before, strict=True)])


def _share(rows: list[torch.Tensor]) -> Interval:
    """Return the mean share of true values in rows of the same images, with an interval in [0, 1]."""
    nothing = metrics.rows_of([torch.zeros_like(row) for row in rows])
    found = metrics.paired_difference(metrics.rows_of(rows), nothing)
    return Interval(found.estimate, max(0.0, found.low), found.high)
