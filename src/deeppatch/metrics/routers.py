"""Measures of a router's decisions: AUROC, and the shares of clean and degraded images that it sends elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from deeppatch.metrics.rates import Rows


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
