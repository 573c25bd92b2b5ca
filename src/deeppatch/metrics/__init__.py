"""Measures of predictions and of a router's decisions, with their intervals: pure functions of arrays."""

from __future__ import annotations

from deeppatch.metrics.intervals import (
    CONFIDENCE,
    Interval,
    mean_interval,
    paired_difference,
    unpaired_difference,
    upper_bound,
)
from deeppatch.metrics.rates import (
    Rows,
    accuracies,
    accuracy,
    at_chance,
    repair_and_break_rates,
    rows_of,
    view_names,
)
from deeppatch.metrics.routers import router_metrics

__all__ = [
    "CONFIDENCE",
    "Interval",
    "Rows",
    "accuracies",
    "accuracy",
    "at_chance",
    "mean_interval",
    "paired_difference",
    "repair_and_break_rates",
    "router_metrics",
    "rows_of",
    "unpaired_difference",
    "upper_bound",
    "view_names",
]
