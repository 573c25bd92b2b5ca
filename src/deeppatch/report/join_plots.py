"""Plots of weak models that modules correct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeppatch.report.plots import COLOURS, MAX_NAMED_CLASSES, headed, legend_below, name_classes, png

# the classes and their mean
MAX_NAMED = MAX_NAMED_CLASSES + 1
# after, by whether it is lower than before: label, colour, marker
AFTER = {False: ("after, not lower", COLOURS[0], "^"), True: ("after, lower", COLOURS[1], "v")}


def before_and_after(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    measures: Mapping[str, str],
    title: str,
) -> bytes:
    """Plot each measure in percent by class, before and after; `measures` names them, one panel each.

    The last of the classes is set apart: it is their mean. Each axis ends near the data.
    """
    rows = math.ceil(len(measures) / 2)
    width = min(16.0, max(8.0, 2 * (0.55 * len(before) + 1)))
    figure = Figure(figsize=(width, 3.2 * rows + 0.8), layout="constrained")
    last = list(before)[-1]
    for panel, (measure, shown) in enumerate(measures.items()):
        axes = figure.add_subplot(rows, 2, panel + 1)
        _changes(axes, [(before[name][measure], after[name][measure]) for name in before])
        axes.axvline(len(before) - 1.5, color="grey", linewidth=0.8, linestyle=":")
        name_classes(axes.xaxis, list(before), MAX_NAMED)
        axes.set(ylabel=f"{shown} (%)", xlim=(-0.6, len(before) - 0.4))
        axes.margins(y=0.2)
        axes.grid(alpha=0.3, axis="y")
    axes.plot([], [], "o", color="black", fillstyle="none", label="before")
    for label, colour, marker in AFTER.values():
        axes.plot([], [], marker, color=colour, label=label)
    legend_below(figure)
    numbers = f"numbers: points gained; {last}" if len(before) <= MAX_NAMED else f"{last}, the last one"
    headed(figure, f"{title}\n{numbers}: of all classes shown")
    return png(figure)


def _changes(axes: Axes, pairs: list[tuple[float, float]]) -> None:
    """Draw a line from before to after for each pair, and the points between them if there is room."""
    for position, (was, now) in enumerate(pairs):
        _label, colour, marker = AFTER[now < was]
        axes.plot([position, position], [was, now], color=colour, linewidth=1.5)
        axes.plot(position, was, "o", color="black", fillstyle="none")
        axes.plot(position, now, marker, color=colour)
        if len(pairs) <= MAX_NAMED:
            place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{now - was:+.1f}", (position, max(was, now)), (0, 7), **place)
