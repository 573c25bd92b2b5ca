"""Accuracies by view, repair and break rates, and the router's scorecard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from torch import Tensor


def view_names(sigmas: Sequence[float]) -> list[str]:
    """Return the names of a right-or-wrong table's rows: clean, then one for each blur level."""
    return ["clean", *(f"s={sigma:g}" for sigma in sigmas)]


def accuracies(right: Tensor, sigmas: Sequence[float]) -> dict[str, float]:
    """Return accuracies in percent of bool (levels + 1, images): clean, each level, their mean, and over append."""
    shares = (100 * right.double().mean(1)).tolist()
    named = dict(zip(view_names(sigmas), shares, strict=True))
    return {**named, "blurred": float(np.mean(shares[1:])), "append": float(np.mean(shares))}


def changes(right: Tensor, before: Tensor, sigmas: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return repair (wrong to right) and break (right to wrong) rates, in percent of all images of each view.

    Accuracy is that of `before`, plus repair, minus break. Both tables are bool (levels + 1, images).
    """
    return {"repair": accuracies(right & ~before, sigmas), "break": accuracies(before & ~right, sigmas)}


def table(networks: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row for each network and one column for each view, in percent."""
    frame = pd.DataFrame.from_dict(networks, orient="index")
    return frame.rename_axis("network").reset_index()


def show(frame: pd.DataFrame) -> str:
    """Format a table for the terminal, numbers with two decimals."""
    return frame.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")


def scorecard(scores: Tensor, switched: Tensor, sigmas: Sequence[float]) -> dict[str, Any]:
    """Return how a router did on append: scores and decisions, both (levels + 1, images), row 0 clean.

    AUROC of clean against each level and against all; clean samples that switched and degraded ones that did not,
    in percent.
    """
    table, moved = scores.cpu().numpy(), switched.double().cpu().numpy()
    names = view_names(sigmas)[1:]

    def auroc(degraded: np.ndarray) -> float:
        truth = np.r_[np.zeros(table.shape[1]), np.ones(degraded.size)]
        return float(roc_auc_score(truth, np.r_[table[0], degraded.ravel()]))

    by_level = {name: auroc(row) for name, row in zip(names, table[1:], strict=True)}
    return {
        "auroc": {**by_level, "blurred": auroc(table[1:])},
        "false_switch_percent": 100 * float(moved[0].mean()),
        "missed_switch_percent": {
            **{name: 100 * float(1 - row.mean()) for name, row in zip(names, moved[1:], strict=True)},
            "blurred": 100 * float(1 - moved[1:].mean()),
        },
    }


def with_changes(accuracy: pd.DataFrame, changed: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Return accuracies, repair and break rates in one table, told apart by the column `measure`."""
    frames = [accuracy.assign(measure="accuracy")]
    for measure in ("repair", "break"):
        frames.append(table({name: each[measure] for name, each in changed.items()}).assign(measure=measure))
    return pd.concat(frames, ignore_index=True)


def show_changes(changed: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format repair and break rates as one cell a view: `+repair -break`."""
    cells = {
        name: {view: f"+{each['repair'][view]:.1f} -{each['break'][view]:.1f}" for view in each["repair"]}
        for name, each in changed.items()
    }
    frame = pd.DataFrame.from_dict(cells, orient="index").rename_axis("network").reset_index()
    return frame.to_string(index=False)


def routing_table(card: dict[str, Any]) -> pd.DataFrame:
    """Return one row a view: AUROC against clean, and the share of samples routed wrongly, in percent."""
    rows = [{"view": "clean", "auroc": float("nan"), "routed_wrongly_percent": card["false_switch_percent"]}]
    for view, missed in card["missed_switch_percent"].items():
        rows.append({"view": view, "auroc": card["auroc"][view], "routed_wrongly_percent": missed})
    return pd.DataFrame(rows)
