"""Results of repairs with bought labels: accuracy on the test images of each run, and a comparison of runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from deeppatch.training import History

# the settings that define a kind of run; runs of one kind differ only by seed
TRAINING_OPTIONS = [
    "epochs", "lr", "batch_size", "max_batches", "ramp", "weight_decay", "pseudo_weight", "pool_weights",
]  # fmt: skip
SAFE_OPTIONS = ["pseudo_labels", "scope", "no_prior"]
STUDIED = ["tau_setting", "cluster_size", "coreset_start", "rounds", "step"]
OF_CHOICE = ["features", "encoder", "encoder_epochs", "budget", "views", *STUDIED]
# what runs of versions without these options had
EARLIER: dict[str, object] = {
    "weight_decay": 5e-4, "pseudo_weight": 100.0, "pool_weights": "dynamic", "tau_setting": "auto",
    "cluster_size": 10, "coreset_start": "train", "rounds": 1,
}  # fmt: skip
KIND_COLUMNS = ["method", "use", *SAFE_OPTIONS, *OF_CHOICE, *TRAINING_OPTIONS]
# what the safe recipe watches after each epoch
OF_PSEUDO_LABELS = (
    "confident_percent", "pseudo_label_entropy", "least_class_share", "pseudo_labels_correct_percent",
)  # fmt: skip
SUMMARISED = ["finetuned_percent", "last_percent", "gained_points", "fixed", "broken"]


def outcome(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return accuracies in percent of predictions (M,) of warm start and last epoch, and the changes between them."""
    was, now = before == labels, after == labels
    fixed, broken = int((now & ~was).sum()), int((was & ~now).sum())
    return {
        "finetuned_percent": percent(was),
        "last_percent": percent(now),
        "gained_points": round(100 * (fixed - broken) / len(labels), 4),
        "fixed": fixed,
        "broken": broken,
    }


def percent(correct: Tensor) -> float:
    """Return the share of True, in percent."""
    return round(100 * correct.double().mean().item(), 4)


def by_class(predictions: dict[str, Tensor], labels: Tensor, names: tuple[str, ...]) -> pd.DataFrame:
    """Return one row per class: the number of images, and the accuracy in percent for each of `predictions` (M,)."""
    rows = []
    for label, name in enumerate(names):
        own = labels == label
        shares = {
            f"{which}_percent": percent(found[own] == label) if own.any() else float("nan")
            for which, found in predictions.items()
        }
        rows.append({"class": name, "images": int(own.sum()), **shares})
    return pd.DataFrame(rows)


def epochs(history: History) -> pd.DataFrame:
    """Return one row per epoch: loss, accuracies on val and test in percent, the pool's mean entropy in [0, 1]."""
    table = pd.DataFrame(
        {
            "epoch": range(1, len(history.loss) + 1),
            "loss": history.loss,
            "val_percent": [100 * value for value in history.accuracy],
            "test_percent": [100 * values["test"] for values in history.watched],
        }
    )
    if "entropy" in history.watched[0]:
        table["pool_entropy"] = [values["entropy"] for values in history.watched]
    for name in OF_PSEUDO_LABELS:
        if any(name in values for values in history.watched):
            table[name] = [values.get(name) for values in history.watched]
    return table


def diagnosed_by_epoch(table: pd.DataFrame) -> dict[str, Any]:
    """Return the diagnostics of pseudo-labels after the last epoch that had any, where the pool is simulated."""
    name = "pseudo_labels_correct_percent"
    known = table[name].dropna().tolist() if name in table else []
    return {name: float(known[-1])} if known else {}


def least_entropy(table: pd.DataFrame) -> dict[str, Any]:
    """Return the epoch after which the pool's mean entropy was lowest, and the test accuracy after it, in percent.

    None if it was not measured. HybridRepair's code chooses this epoch, because the choice needs no labels.
    """
    if "pool_entropy" not in table:
        return {"least_entropy_epoch": None, "least_entropy_percent": None}
    best = int(table["pool_entropy"].argmin())
    return {"least_entropy_epoch": best + 1, "least_entropy_percent": float(table["test_percent"].iloc[best])}


def over_runs(runs: Iterable[Mapping[str, Any]], method: str) -> dict[int, float]:
    """Return the gain in points over the warm start of one method's run for each seed, in the order of the runs."""
    return {run["seed"]: run["gained_points"] for run in runs if run["method"] == method}


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each kind of run: number of seeds, labels, seconds, means over seeds and sample deviations.

    Rows are sorted by descending gain. Deviations are missing for a single seed.
    """
    rows = rows.reindex(columns=rows.columns.union([*KIND_COLUMNS, "steps"], sort=False))  # earlier versions lack some
    rows = rows.assign(max_batches=rows["max_batches"].astype(float).fillna(rows["steps"].astype(float)))
    filled = {name: rows[name].astype(object).where(rows[name].notna(), value) for name, value in EARLIER.items()}
    rows = rows.assign(**filled).astype({"tau_setting": str})
    grouped = rows.groupby(KIND_COLUMNS, dropna=False, sort=True)
    table = grouped.agg(
        seeds=("seed", "nunique"), labels_bought=("labels_bought", "mean"), wall_seconds=("wall_seconds", "mean")
    )
    for name in SUMMARISED:
        table[name], table[f"{name}_deviation"] = grouped[name].mean(), grouped[name].std(ddof=1)
    return table.reset_index().sort_values("gained_points", ascending=False, kind="stable", ignore_index=True)


def name_of(kind: Mapping[Hashable, Any], kinds: pd.DataFrame) -> str:
    """Return the name of a kind of run: its method, and the settings that distinguish it from others.

    These are the training options that differ among all kinds, the other options that differ among the kinds of its
    method, except the budget, and the encoder options that differ among those with its features.
    """
    same = kinds[kinds["method"] == kind["method"]]
    alike = same[same["features"] == kind["features"]]
    compared = {
        "use": same,
        **dict.fromkeys(SAFE_OPTIONS, same),
        "features": same,
        "encoder": alike,
        "encoder_epochs": alike,
        "views": same,
        **dict.fromkeys(STUDIED, same),
        **dict.fromkeys(TRAINING_OPTIONS, kinds),
    }
    telling = [name for name, others in compared.items() if others[name].nunique(dropna=False) > 1]
    return " ".join([str(kind["method"]), *(f"{name}={_spelled(kind[name])}" for name in telling)])


def curves(table: pd.DataFrame) -> dict[str, list[tuple[int, float, float]]]:
    """Return (labels, mean gain in points, deviation) of each kind of run, by name; in the order of the table."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for kind in table.to_dict("records"):
        point = (round(kind["labels_bought"]), kind["gained_points"], kind["gained_points_deviation"])
        points.setdefault(name_of(kind, table), []).append(point)
    return points


def seeds_of(table: pd.DataFrame) -> str:
    """Return what the gains of a comparison are: of one seed, or means over several with their deviation."""
    fewest, most = int(table["seeds"].min()), int(table["seeds"].max())
    if most == 1:
        return "one seed"
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"mean over {seeds} seeds, bars: ± one standard deviation"


def _spelled(value: Any) -> str:
    """Format a count without a decimal point, even if a column with gaps has it as a float."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_comparison(table: pd.DataFrame) -> str:
    """Format a comparison for the terminal: accuracies and gains as mean ± deviation."""
    shown = pd.DataFrame({"method": [name_of(kind, table) for kind in table.to_dict("records")]})
    shown["labels"] = table["labels_bought"].map("{:g}".format)
    shown["seeds"] = table["seeds"]
    for column, name in (("finetuned", "finetuned_percent"), ("last", "last_percent"), ("gained", "gained_points")):
        sign = "+" if column == "gained" else ""
        shown[column] = [
            f"{mean:{sign}.2f}" + ("" if pd.isna(spread) else f" ± {spread:.2f}")
            for mean, spread in zip(table[name], table[f"{name}_deviation"], strict=True)
        ]
    shown["fixed"], shown["broken"] = (table[name].map("{:.1f}".format) for name in ("fixed", "broken"))
    return shown.to_string(index=False)
