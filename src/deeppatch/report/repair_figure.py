"""The figure of a repair: accuracy against the degradation before and after it, and what it costs on clean images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeppatch.report.plots import COLOURS, MARKERS, png

CLEAN, LEVEL = "clean", "s="
# how a network is named and drawn: label, index of its colour and marker, width of its line
NETWORKS = {
    "pretrained": ("before", 7, 2.4),
    "finetuned": ("fine-tuned", 1, 2.4),
    "switched": ("repaired (switched)", 0, 2.4),
    "patched": ("patched always on", 5, 1.2),
}


def draw_repair(table: pd.DataFrame, path: Path, title: str) -> None:
    """Write a PNG of accuracy against the degradation, and of the clean accuracy of each network, 800 by 350 points.

    Columns of `table`: seed, network (pretrained, finetuned, switched, patched or another name), clean, and a level
    each, as s=0.5, all in percent; other columns are not drawn. Lines are means over the seeds. Bands and bars show the
    sample standard deviation, where there are several seeds. The file has two pixels a point.
    """
    levels = [str(column) for column in table.columns if str(column).startswith(LEVEL)]
    sigmas = [0.0, *(float(level.removeprefix(LEVEL)) for level in levels)]
    known = [name for name in NETWORKS if name in set(table["network"])]
    names = [*known, *(name for name in table["network"].unique() if name not in NETWORKS)]
    figure = Figure(figsize=(10, 4.4), layout="constrained", facecolor="white")
    curves, clean = figure.subplots(1, 2, width_ratios=(2.6, 1))
    for index, name in enumerate(names):
        rows = table[table["network"] == name]
        _curve(curves, rows, name, index, sigmas, [CLEAN, *levels])
        _clean(clean, rows, name, index)
    curves.set(xlabel="blur of the test images, standard deviation (pixels)", ylabel="accuracy on test images (%)")
    curves.set_xticks(sigmas, [CLEAN, *(level.removeprefix(LEVEL) for level in levels)])
    clean.set(xlabel="clean images, magnified", xlim=(-0.6, len(names) - 0.4))
    clean.set_xticks([])
    clean.margins(y=0.15)
    for axes in (curves, clean):
        axes.grid(alpha=0.3, axis="y")
        axes.tick_params(labelsize=11)
        axes.xaxis.label.set_size(12)
        axes.yaxis.label.set_size(12)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend(loc="lower left", fontsize=12, frameon=False)
    figure.suptitle(f"{title}\n{_spread(table)}", fontsize=13)
    path.write_bytes(png(figure, dpi=160))


def _curve(axes: Axes, rows: pd.DataFrame, name: str, index: int, sigmas: list[float], columns: list[str]) -> None:
    """Draw the mean over the seeds, and a band of the deviation to both sides."""
    label, style, width = NETWORKS.get(name, (name, index, 1.6))
    means, deviations = rows[columns].mean(), rows[columns].std(ddof=1)
    colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
    axes.plot(sigmas, means, marker=marker, color=colour, linewidth=width, markersize=3 + 1.6 * width, label=label)
    if len(rows) > 1:
        axes.fill_between(sigmas, means - deviations, means + deviations, color=colour, alpha=0.2, linewidth=0)


def _clean(axes: Axes, rows: pd.DataFrame, name: str, index: int) -> None:
    """Draw the clean accuracy of each seed, their mean as a number, and their deviation as a bar."""
    _label, style, _width = NETWORKS.get(name, (name, index, 1.6))
    values, mean = rows[CLEAN], rows[CLEAN].mean()
    colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
    top = mean
    if len(rows) > 1:
        top = max(values.max(), mean + values.std(ddof=1))
        axes.scatter([index - 0.25] * len(rows), values, s=16, color=colour, alpha=0.6, linewidths=0)
        axes.errorbar(index, mean, values.std(ddof=1), color=colour, capsize=4, elinewidth=1.6)
    axes.plot(index, mean, marker=marker, color=colour, markersize=8)
    axes.annotate(f"{mean:.1f}", (index, top), (0, 7), textcoords="offset points", ha="center", fontsize=11)


def _spread(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "one seed" if seeds == 1 else f"mean over {seeds} seeds; bands and bars: ± one standard deviation"
