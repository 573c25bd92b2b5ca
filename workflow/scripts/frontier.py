"""The picture of a study: accuracy on degraded images against what a repair stores, and against its clean loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))  # behind the standard library, for src/select.py

from deeppatch.ledger.pools import ALL, BLURRED, DEGRADED  # noqa: E402
from deeppatch.ledger.records import CLEAN  # noqa: E402
from deeppatch.report.plots import COLOURS, MARKERS, png  # noqa: E402

GAINED = (BLURRED, ALL, DEGRADED)  # the first of these that is there is drawn


def draw(table: pd.DataFrame, base: str, path: Path) -> None:
    """Write a PNG with a row of two panels for each model, data set and degradation; bars are standard deviations.

    Args:
        table: A row for each network and seed: model, data, degradation, network, seed, bytes, clean, and means over
            degradations, in percent.
        base: What `network` is called before its repair.
        path: The file.
    """
    groups = list(table.groupby(["model", "data", "degradation"], sort=False))
    figure = Figure(figsize=(11, 4.2 * len(groups)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), (names, own) in zip(panels, groups, strict=True):
        gained = next(view for view in GAINED if view in own and own[view].notna().any())
        before = own[own.network == base].set_index("seed")[CLEAN]
        for index, (name, rows) in enumerate(own.groupby("network", sort=False)):
            y = rows[gained]
            _point(left, rows["bytes"].fillna(0) / 1000, y, str(name), index)
            _point(right, rows["seed"].map(before) - rows[CLEAN], y, str(name), index)
        accuracy = f"accuracy, {gained} (%)"
        left.set(xlabel="stored beside the base network (kB)", ylabel=accuracy, title=", ".join(map(str, names)))
        left.set_xscale("symlog", linthresh=10)
        left.xaxis.set_major_formatter("{x:g}")
        right.set(xlabel="clean accuracy lost (points)", ylabel=accuracy)
        if (seeds := own["seed"].nunique()) > 1:
            right.set_title(f"means of {seeds} seeds, bars: standard deviations")
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, labelspacing=1, frameon=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path.write_bytes(png(figure, dpi=120))


def _point(axes: Axes, x: pd.Series, y: pd.Series, name: str, index: int) -> None:
    """Draw the mean over seeds, with the standard deviation to all sides where there are several."""
    bars = {"xerr": x.std(ddof=1), "yerr": y.std(ddof=1)} if len(y) > 1 else {}
    style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    style |= {"fillstyle": "none", "markersize": max(12 - 2 * index, 5)}  # so that none hides another at its place
    axes.errorbar(x.mean(), y.mean(), **bars, **style, linestyle="none", capsize=3, label=name)
