"""Measures of predictions and of a router's decisions: accuracies, repair and break rates, bounds, AUROC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from torch import Tensor

CONFIDENCE = 0.95


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share, in [0, 1], of predictions (M,) that equal labels (M,)."""
    return (predictions == labels).double().mean().item()


def view_names(level_names: Sequence[str]) -> list[str]:
    """Return the names of the rows of a table of correct predictions: clean, then each level of a corruption."""
    return ["clean", *level_names]


def accuracies(correct: Tensor, level_names: Sequence[str], mean: str = "mean") -> dict[str, float]:
    """Return accuracies in percent of a table of correct predictions, bool (levels + 1, images).

    Keys are clean, each level, `mean` for the mean over the levels, and append for the mean over all rows.
    """
    shares = (100 * correct.double().mean(1)).tolist()
    named = dict(zip(view_names(level_names), shares, strict=True))
    return {**named, mean: float(np.mean(shares[1:])), "append": float(np.mean(shares))}


def repair_and_break_rates(
    correct: Tensor, before: Tensor, level_names: Sequence[str], mean: str = "mean"
) -> dict[str, dict[str, float]]:
    """Return repair (wrong to correct) and break (correct to wrong) rates, in percent of all images of each view.

    Accuracy is that of `before`, plus repair, minus break. Both tables are bool (levels + 1, images).
    """
    return {
        "repair": accuracies(correct & ~before, level_names, mean),
        "break": accuracies(before & ~correct, level_names, mean),
    }


def router_metrics(scores: Tensor, switched: Tensor, level_names: Sequence[str], mean: str = "mean") -> dict[str, Any]:
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
    table, share_switched = scores.cpu().numpy(), switched.double().cpu().numpy()

    def auroc(degraded: np.ndarray) -> float:
        truth = np.r_[np.zeros(table.shape[1]), np.ones(degraded.size)]
        return float(roc_auc_score(truth, np.r_[table[0], degraded.ravel()]))

    by_level = {name: auroc(row) for name, row in zip(level_names, table[1:], strict=True)}
    missed = {name: 100 * float(1 - row.mean()) for name, row in zip(level_names, share_switched[1:], strict=True)}
    return {
        "auroc": {**by_level, mean: auroc(table[1:])},
        "false_switch_percent": 100 * float(share_switched[0].mean()),
        "missed_switch_percent": {**missed, mean: 100 * float(1 - share_switched[1:].mean())},
    }


def upper_bound(losses: int, images: int) -> float:
    """Return the one-sided 95 % upper confidence bound (Clopper and Pearson) on a share, given `losses` in `images`.

    >>> round(upper_bound(0, 1000), 4)
    0.003
    """
    return 1.0 if losses >= images else float(beta.ppf(CONFIDENCE, losses + 1, images - losses))
