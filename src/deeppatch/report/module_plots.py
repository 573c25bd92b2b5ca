"""Plots of modules: the kernels that they keep and share, and the history of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deeppatch.report.plots import (
    COLOURS,
    MAX_NAMED_CLASSES,
    class_by_class,
    headed,
    legend_below,
    name_classes,
    number_cells,
    png,
)

MAX_NAMED_LAYERS = 40


def kept(shares: Sequence[Sequence[float]], layers: Sequence[str], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-layer heat map of the kernels kept, in percent; `shares` are in [0, 1]."""
    height = max(3.5, 0.35 * len(classes) + 2.5) if len(classes) <= MAX_NAMED_CLASSES else 9.0
    figure = Figure(figsize=(max(6.0, min(16.0, 0.55 * len(layers) + 3)), height), layout="constrained")
    axes = figure.add_subplot()
    percent = [[100 * share for share in row] for row in shares]
    image = axes.imshow(percent, aspect="auto", cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(classes) <= MAX_NAMED_CLASSES and len(layers) <= MAX_NAMED_LAYERS:
        number_cells(axes, percent, "{:.0f}", 55)
    if len(layers) <= MAX_NAMED_LAYERS:
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    name_classes(axes.yaxis, classes)
    axes.set(xlabel="layer of kernels")
    figure.colorbar(image, label="kernels kept (%)")
    headed(figure, title)
    return png(figure)


def overlap(jaccard: Sequence[Sequence[float]], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-class heat map of the Jaccard index, in [0, 1], of the kernels that two modules keep."""
    return class_by_class(jaccard, classes, ("{:.2f}", 0.6), 1, "kernels in common\nover kernels of either", title)


def search(frame: pd.DataFrame, strong: float, title: str) -> bytes:
    """Plot held-out accuracy against the kernels kept, both in percent, over a search; `strong` is the whole network's.

    Columns of `frame`: first the generation or epoch, under that name; then holdout_accuracy and kept in
    [0, 1], and best.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    x, y = 100 * frame["kept"], 100 * frame["holdout_accuracy"]
    axes.plot(x, y, "-", color="darkgrey", linewidth=0.8, zorder=1)
    points = axes.scatter(x, y, c=frame.iloc[:, 0], s=28, edgecolors="black", linewidths=0.4, zorder=2)
    chosen = frame["best"]
    ring: dict[str, Any] = {"s": 140, "facecolors": "none", "edgecolors": COLOURS[1], "linewidths": 1.8}
    axes.scatter(x[chosen], y[chosen], label="chosen", **ring)
    axes.axhline(100 * strong, color="black", linestyle=":", label="whole network")
    axes.set(xlabel="kernels kept, mean over modules (%)", ylabel="composed accuracy, held out (%)")
    axes.grid(alpha=0.3)
    legend_below(figure)
    figure.colorbar(points, label=str(frame.columns[0]), ticks=MaxNLocator(integer=True))
    headed(figure, title)
    return png(figure)
