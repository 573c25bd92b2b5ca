"""The picture of a study: accuracy on degraded images against what a repair stores, and against its clean loss."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import source  # noqa: F401
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matrix import SWITCHED

from deeppatch.ledger.pools import ALL, BLURRED, DEGRADED, HELD_OUT
from deeppatch.ledger.records import CLEAN
from deeppatch.report.plots import COLOURS, MARKERS, png

SIZE = re.compile(r", ratio ([\d.e+-]+)")
WIDE = 5  # points of accuracy among repairs, which are worth an axis of their own
GAINED = (BLURRED, ALL, DEGRADED, HELD_OUT)  # the first of these that is there is drawn


def draw(table: pd.DataFrame, base: str, path: Path) -> None:
    """Write a PNG with a row of two panels for each model, data set and degradation; bars are standard deviations.

    Lines connect the sizes of one method's patch, which stand beside the points. The network before its repair is named
    beside the axis where it lies far under the others.

    Args:
        table: A row for each network and seed: model, data, degradation, network, seed, bytes, clean, and means over
            degradations, in percent.
        base: What `network` is called before its repair.
        path: The file.
    """
    groups = list(table.groupby(["model", "data", "degradation"], sort=False))
    figure = Figure(figsize=(12, 5.2 * len(groups)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), (names, group) in zip(panels, groups, strict=True):
        gained = next(view for view in GAINED if view in group and group[view].notna().any())
        before = group[group.network == base].set_index("seed")
        own = group.assign(lost=group["seed"].map(before[CLEAN]) - group[CLEAN], stored=group["bytes"].fillna(0) / 1000)
        own = own[["network", "stored", "lost", gained]].groupby("network", sort=False)
        means, spreads = own.mean(), own.std(ddof=1)
        repaired = means[gained].drop(base)
        spread = repaired.max() - repaired.min()
        far = bool(spread > WIDE and means[gained][base] < repaired.min() - spread)
        if far:
            means = means.drop(base)
        colours: dict[str, int] = {}
        for method, sizes in series(means.index).items():
            index = colours.setdefault(method.removesuffix(SWITCHED), len(colours))
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "label": method}
            style |= {"linestyle": "--", "fillstyle": "full"} if method.endswith(SWITCHED) else {"fillstyle": "none"}
            for axes, x in ((left, "stored"), (right, "lost")):
                _line(axes, means.loc[list(sizes)], spreads.loc[list(sizes)], x, gained, style, sizes.values())
        accuracy = f"accuracy, {gained} (%)" + f"; {base}: {before[gained].mean():.1f}" * far
        left.set(xlabel="stored beside the base network (kB)", ylabel=accuracy, title=", ".join(map(str, names)))
        left.set_xscale("symlog", linthresh=10)
        left.xaxis.set_major_formatter("{x:g}")
        left.set_xlim(-1, 2 * max(means["stored"].max(), 1))
        right.set(xlabel="clean accuracy lost (points)", ylabel=accuracy)
        if (seeds := group["seed"].nunique()) > 1:
            right.set_title(f"means of up to {seeds} seeds, bars: standard deviations")
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, labelspacing=1, frameon=False)
    for axes in panels.flat:
        axes.margins(y=0.08)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    path.write_bytes(png(figure, dpi=120))


def series(networks: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of networks, each with the size of its patch as text, by method and in order of size.

    >>> series(["patch, ratio 0.5, switched", "finetune", "patch, ratio 1e-05, switched"])["patch, switched"]
    {'patch, ratio 1e-05, switched': '1e-05', 'patch, ratio 0.5, switched': '0.5'}
    """
    found: dict[str, dict[str, str]] = {}
    for network in networks:
        size = SIZE.search(network)
        found.setdefault(SIZE.sub("", network), {})[network] = size.group(1) if size else ""
    return {name: dict(sorted(own.items(), key=lambda each: float(each[1] or 0))) for name, own in found.items()}


def _line(
    axes: Axes, means: pd.DataFrame, spreads: pd.DataFrame, x: str, y: str, style: dict[str, Any], sizes: Iterable[str]
) -> None:
    """Draw the means of a method over seeds, from size to size, with standard deviations where there are several."""
    axes.errorbar(means[x], means[y], xerr=spreads[x], yerr=spreads[y], **style, linewidth=1, markersize=7, capsize=3)
    above = style["fillstyle"] == "none"
    for place, size in zip(zip(means[x], means[y], strict=True), sizes, strict=True):
        offset = {"xytext": (-4, 6), "ha": "right"} if above else {"xytext": (5, -11), "ha": "left"}
        axes.annotate(size, place, **offset, textcoords="offset points", fontsize=8, color=style["color"])
