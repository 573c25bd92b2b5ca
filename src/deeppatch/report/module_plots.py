"""Plots of modules: the kernels that they keep and share, and the history of a search."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deeppatch.report.plots import MAX_NAMED_CLASSES, png


def kept(shares: Sequence[Sequence[float]], layers: Sequence[str], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-layer heat map of the kernels kept, in percent; `shares` are in [0, 1]."""
    figure = Figure(figsize=(max(6.0, 0.55 * len(layers) + 3), max(3.5, 0.4 * len(classes) + 2)), layout="constrained")
    axes = figure.add_subplot()
    percent = [[100 * share for share in row] for row in shares]
    image = axes.imshow(percent, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    _annotate(figure, percent, "{:.0f}", 55)
    _names(figure, layers, classes)
    axes.set(xlabel="layer of kernels", title=title)
    figure.colorbar(image, label="kernels kept (%)")
    return png(figure)


def overlap(jaccard: Sequence[Sequence[float]], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-class heat map of the Jaccard index, in [0, 1], of the kernels that two modules keep."""
    size = max(4.5, 0.55 * len(classes) + 2.5)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(jaccard, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _annotate(figure, jaccard, "{:.2f}", 0.6, dark=True)
    _names(figure, classes, classes)
    axes.set_title(title, fontsize=9, wrap=True)
    figure.colorbar(image, label="kernels in common over kernels of either", shrink=0.8)
    return png(figure)


def search(frame: pd.DataFrame, strong: float, title: str) -> bytes:
    """Plot held-out accuracy against the kernels kept, both in percent, over a search; `strong` is the whole network's.

    Columns of `frame`: first the generation or epoch, under that name; then holdout_accuracy and kept in
    [0, 1], and best.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    x, y = 100 * frame["kept"], 100 * frame["holdout_accuracy"]
    axes.plot(x, y, "-", color="lightgrey", linewidth=0.8, zorder=1)
    points = axes.scatter(x, y, c=frame.iloc[:, 0], cmap="viridis", s=18, zorder=2)
    chosen = frame["best"]
    axes.scatter(x[chosen], y[chosen], s=140, facecolors="none", edgecolors="tab:red", linewidths=1.8, label="chosen")
    axes.axhline(100 * strong, color="grey", linestyle="--", label="whole network")
    axes.set(xlabel="kernels kept, mean over modules (%)", ylabel="composed accuracy, held out (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.colorbar(points, label=str(frame.columns[0]), ticks=MaxNLocator(integer=True))
    return png(figure)


def _annotate(figure: Figure, values: Sequence[Sequence[float]], form: str, half: float, *, dark: bool = False) -> None:
    if len(values) > MAX_NAMED_CLASSES or len(values[0]) > 2 * MAX_NAMED_CLASSES:
        return
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            color = "white" if (value > half) == dark else "black"
            figure.axes[0].text(column, row, form.format(value), ha="center", va="center", fontsize=7, color=color)


def _names(figure: Figure, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes = figure.axes[0]
    if len(columns) <= 2 * MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    if len(rows) <= MAX_NAMED_CLASSES:
        axes.set_yticks(range(len(rows)), rows)
