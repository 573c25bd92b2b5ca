"""The report of compose: each class before and after its module joined the weak model, as tables, plot and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.modular.joining import BEFORE
from deeppatch.modular.joins import mean_of_rows
from deeppatch.modular.weak_networks import published_weak_network
from deeppatch.progress import info
from deeppatch.report import join_plots

MEASURES = {
    "precision": "precision", "recall": "recall", "f1": "F1", "others_accuracy": "accuracy of the others"
}  # fmt: skip
MEAN = "mean"

# metrics in percent, by class (and their mean), by join
Percent = dict[str, dict[str, dict[str, float]]]


def report(context: Context, done: Mapping[str, Mapping[str, Any]], joins: Sequence[str]) -> None:
    """Write table, metrics, ranges and plot of the comparisons of joins by class; print before and after."""
    options, stage, headline = context.options, context.stage, joins[0]
    weak = options.weak or published_weak_network(options.model, options.dataset, options.fit)
    percent: Percent = {
        name: {join: {k: 100 * v for k, v in row.items()} for join, row in found["metrics"].items()}
        for name, found in done.items()
    }
    percent[MEAN] = {join: mean_of_rows([percent[name][join] for name in done]) for join in (BEFORE, *joins)}
    rows = [{"class": name, "join": join, **row} for name, by in percent.items() for join, row in by.items()]
    stage.write_table("table.csv", pd.DataFrame(rows))
    stage.write_json(
        "ranges.json",
        {name: {"images": found["range_images"], "ranges": found["ranges"]} for name, found in done.items()},
    )
    title = f"{weak} ({options.fit}), corrected by modules of {options.model} on {context.source.name}"
    before, after = ({name: by[join] for name, by in percent.items()} for join in (BEFORE, headline))
    stage.write(
        "corrected.png", join_plots.before_and_after(before, after, MEASURES, f"{title}, test images, join: {headline}")
    )
    stage.write_json(
        "metrics.json",
        {
            "weak": weak,
            "fit": options.fit,
            "strong": options.model,
            "dataset": context.source.name,
            "limit": options.limit,
            "join": headline,
            "test_images": {n: found["test_images"] for n, found in done.items()},
            "percent": percent,
        },
    )
    stage.finish()
    print(changes(before, after).to_string(index=False))
    means = pd.DataFrame(percent[MEAN]).T.rename(columns=MEASURES).rename_axis("join").reset_index()
    print(f"\nmean over {len(done)} classes, by join\n{means.to_string(index=False, float_format='%.2f')}")
    info(f"{title}; join: {headline}; percent on test, before -> after; written to {stage.folder}")


def changes(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row per class, with each measure as `before -> after`."""
    rows = [
        {"class": name, **{shown: f"{before[name][k]:.1f} -> {after[name][k]:.1f}" for k, shown in MEASURES.items()}}
        for name in before
    ]
    return pd.DataFrame(rows)
