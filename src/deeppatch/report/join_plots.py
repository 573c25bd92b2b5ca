"""Plots of weak models that modules correct."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from deeppatch.report.plots import png


def before_and_after(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    measures: Mapping[str, str],
    title: str,
) -> bytes:
    """Plot each measure in percent by class, before and after; `measures` names them, one panel each."""
    figure = Figure(figsize=(max(7.0, 1.1 * len(before) + 2), 9), layout="constrained")
    positions = range(len(before))
    for panel, (measure, shown) in enumerate(measures.items()):
        axes = figure.add_subplot(len(measures), 1, panel + 1)
        for shift, color, label, rows in ((-0.2, "lightgrey", "before", before), (0.2, "tab:blue", "after", after)):
            bars = axes.bar(
                [position + shift for position in positions],
                [row[measure] for row in rows.values()],
                0.4,
                color=color,
                edgecolor="black",
                linewidth=0.4,
                label=label,
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        axes.set(ylabel=f"{shown} (%)", ylim=(0, 112))
        axes.set_yticks([0, 50, 100])
        axes.set_xticks(positions, list(before), fontsize=8)
        axes.axvline(len(before) - 1.5, color="grey", linewidth=0.6, linestyle=":")
        if panel == 0:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(figure)
