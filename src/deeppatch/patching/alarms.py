"""Measure alarms for samples that resemble nothing in the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deeppatch import metrics

SHARES = (0.05, 0.5)  # of degraded samples in a stream


def alarm_metrics(alarm: metrics.Rows, level_names: Sequence[str], mean: str = "mean") -> dict[str, Any]:
    """Return how often samples are told to resemble nothing seen, and what an alarm says of a sample.

    Args:
        alarm: Which samples raise an alarm, bool (levels + 1, images), row 0 clean.
        level_names: The names of the levels.
        mean: The key of the mean over all levels.

    Returns:
        In percent: `alarm_rate` of each view; `recall`, the share of the degraded samples of all levels that raise an
        alarm; and `precision`, the share of degraded samples among those that raise one, in streams of which 5 % and
        50 % are degraded. Without any alarm there is no precision: None.

    >>> import torch
    >>> found = alarm_metrics(torch.tensor([[False] * 9 + [True], [True] * 9 + [False]]), ["fog"])
    >>> found["alarm_rate"], found["recall"]["5 %"], round(found["precision"]["5 %"], 1)
    ({'clean': 10.0, 'fog': 90.0, 'mean': 90.0}, 90.0, 32.1)
    """
    rates = [(100 * row.double().mean()).item() for row in alarm]
    clean, degraded = rates[0], sum(rates[1:]) / len(rates[1:])
    named = dict(zip(metrics.view_names(level_names), rates, strict=True))
    precision: dict[str, float | None] = {}
    for share in SHARES:
        right, wrong = share * degraded, (1 - share) * clean
        precision[_named(share)] = 100 * right / (right + wrong) if right + wrong else None
    recall = {_named(share): degraded for share in SHARES}  # which does not depend on the share
    return {"alarm_rate": {**named, mean: degraded}, "recall": recall, "precision": precision}


def _named(share: float) -> str:
    return f"{100 * share:g} %"
