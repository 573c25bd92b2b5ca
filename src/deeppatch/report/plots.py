"""Plots, as PNG bytes."""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

# the most classes that can be named on an axis, and the most characters of a name
MAX_NAMED_CLASSES = 20
MAX_NAME = 24
# colours that colour-blind readers tell apart (Okabe and Ito, 2008), and grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>X"
NOISE_LABELS = {"whole": "untouched", "noise_at": "noise at its features", "noise_elsewhere": "noise at all others"}


def accuracy_against_blur(curves: Mapping[str, Sequence[float]], sigmas: Sequence[float], title: str) -> bytes:
    """Plot accuracy in percent of each network (clean first, then the levels) against the blur's sigma in pixels.

    A second panel shows each network's gain over the first one, in points; there, networks are shifted sideways.
    """
    first, *others = curves
    figure = Figure(figsize=(11 if others else 7, 5), layout="constrained")
    panels = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
    x, shift = (
        [0, *sigmas],
        min(0.06, 0.5 / len(curves)) * min(high - low for low, high in zip([0, *sigmas], sigmas, strict=False)),
    )
    for index, (name, values) in enumerate(curves.items()):
        # curves often coincide, so markers are hollow and become smaller from curve to curve
        style = _style(index) | {"markersize": max(4.0, 12 - 2 * index), "fillstyle": "none", "linewidth": 1.3}
        panels[0].plot(x, values, label=name, **style)
        if index:
            gains = [after - before for after, before in zip(values, curves[first], strict=True)]
            place = shift * (index - (len(curves) / 2))
            panels[1].plot([sigma + place for sigma in x], gains, **style | {"markersize": 6})
    panels[0].set_ylabel("accuracy (%)")
    if others:
        panels[1].set_ylabel(textwrap.fill(f"gain over {short(first)} (points)", 30))
        panels[1].axhline(0, color="black", linewidth=0.8)
    for axes in panels:
        axes.set_xlabel("standard deviation of the Gaussian blur (pixels)")
        axes.set_xticks(x, ["clean", *(f"{sigma:g}" for sigma in sigmas)])
        axes.grid(alpha=0.3)
    legend_below(figure)
    headed(figure, title)
    return png(figure)


def accuracy_by_level(curves: Mapping[str, Sequence[float]], levels: Sequence[str], title: str) -> bytes:
    """Plot accuracy in percent of each network (clean first, then the levels) at each level of any degradation."""
    figure = Figure(figsize=(max(7.0, 0.2 * len(levels) + 2), 5.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(curves.items()):
        axes.plot(
            range(len(levels) + 1), values, ["o", "s", "^", "D", "v", "P"][index % 6], label=name, fillstyle="none"
        )
    axes.set_xticks(range(len(levels) + 1), ["clean", *levels], rotation=90, fontsize=7)
    axes.set(ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def filter_scores(scores: dict[str, list[float]], unit: str, title: str, *, descending: bool) -> bytes:
    """Plot every filter's score by layer, and each layer's median; `descending`: the highest are suspicious."""
    figure = Figure(figsize=(max(7.0, 0.32 * len(scores) + 2), 5.2), layout="constrained")
    axes = figure.add_subplot()
    for index, values in enumerate(scores.values()):
        axes.scatter([index] * len(values), values, s=12, alpha=0.45, color=COLOURS[0], linewidths=0)
        middle = statistics.median(values)
        axes.plot([index - 0.35, index + 0.35], [middle, middle], color=COLOURS[1], linewidth=2)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set_xticks(range(len(scores)), list(scores), rotation=90, fontsize=8)
    side = ("high" if descending else "low") + " is suspicious"
    axes.set(xlabel="convolution", ylabel=f"score of a filter ({unit}; {side})", xlim=(-0.7, len(scores) - 0.3))
    axes.scatter([], [], s=12, alpha=0.45, color=COLOURS[0], linewidths=0, label="a filter")
    axes.plot([], [], color=COLOURS[1], linewidth=2, label="median of the layer")
    legend_below(figure)
    headed(figure, title)
    return png(figure)


def ratio_curve(curve: dict[str, dict[str, float]], chosen: float, title: str) -> bytes:
    """Plot mean accuracy in percent over the blur levels, with its standard error, against the patched ratio."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    ratios = [float(ratio) for ratio in curve]
    means = [100 * point["mean"] for point in curve.values()]
    errors = [100 * point["standard_error"] for point in curve.values()]
    axes.errorbar(ratios, means, errors, fmt="-o", color=COLOURS[0], capsize=3, label="mean ± one standard error")
    axes.axvline(chosen, color=COLOURS[1], linestyle="--", label=f"chosen: {chosen:g}")
    axes.set(xlabel="share of each layer's filters that is patched", ylabel="mean accuracy over the levels (%)")
    axes.grid(alpha=0.3)
    legend_below(figure)
    headed(figure, title)
    return png(figure)


def influence(
    frequency: Sequence[Sequence[float]], chosen: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> bytes:
    """Plot a class-by-feature heat map of frequencies in [0, 1], the chosen features of each class framed."""
    features, few = len(frequency[0]), len(classes) <= MAX_NAMED_CLASSES
    height = 0.25 * len(classes) + 2.5 if few else 9.0
    figure = Figure(figsize=(max(8.0, min(16.0, 0.2 * features + 3)), max(3.2, height)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(frequency, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if few:
        for row, indices in enumerate(chosen):
            for index in indices:
                corner = (index - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
        title += "\nframed: the class's most influential features"
    axes.set(xlabel="feature of the last layer (index)")
    name_classes(axes.yaxis, classes)
    figure.colorbar(image, label="share of the class's images\nwith it among their k strongest")
    headed(figure, title)
    return png(figure)


def overlap(shared: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-class heat map of how many features two classes share, with names and numbers for few classes."""
    half = max(map(max, shared)) / 2
    return class_by_class(shared, classes, ("{}", half), half * 2 or 1, "features in common", title)


def class_by_class(
    values: Sequence[Sequence[float]],
    classes: Sequence[str],
    numbers: tuple[str, float],
    highest: float,
    measure: str,
    title: str,
) -> bytes:
    """Plot a class-by-class heat map from 0 to `highest`; `numbers`: their format, and above which they are white."""
    few = len(classes) <= MAX_NAMED_CLASSES
    size = max(4.5, 0.5 * len(classes) + 2) if few else 8.5
    figure = Figure(figsize=(size + 1, size), layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest")
    if few:
        number_cells(axes, values, *numbers)
    name_classes(axes.xaxis, classes)
    name_classes(axes.yaxis, classes)
    whole = all(isinstance(value, int) for row in values for value in row)
    figure.colorbar(image, label=measure, shrink=0.8, ticks=MaxNLocator(integer=True) if whole else None)
    headed(figure, title)
    return png(figure)


def essential(frame: pd.DataFrame, title: str) -> bytes:
    """Plot correct images by class, in percent of the class's images, one panel for each set of features.

    Columns of `frame`: set, class, images, whole, noise_at, noise_elsewhere and the two spreads, in images.
    """
    sets, classes = frame["set"].unique(), list(frame["class"].unique())
    many = len(classes) > MAX_NAMED_CLASSES
    figure = Figure(figsize=(15 if many else 9, 2.6 * len(sets) + 1.2), layout="constrained")
    for index, name in enumerate(sets):
        axes = figure.add_subplot(len(sets), 1, index + 1)
        rows = frame[frame["set"] == name]
        for shift, (column, label) in enumerate(NOISE_LABELS.items()):
            spread = 100 * rows.get(f"{column}_spread", 0 * rows["images"]) / rows["images"]
            x = [position + 0.27 * (shift - 1) for position in range(len(rows))]
            bars = {"yerr": spread, "capsize": 2} if spread.any() and not many else {}
            axes.bar(x, 100 * rows[column] / rows["images"], 0.27, color=COLOURS[shift], label=label, **bars)
        axes.set_xticks([])
        axes.set(ylabel="correct (%)", ylim=(0, 105), title=name)
        axes.margins(x=0.01)
    name_classes(axes.xaxis, classes)
    legend_below(figure)
    headed(figure, title)
    return png(figure)


def accuracy_against_k(frame: pd.DataFrame, whole: float, title: str) -> bytes:
    """Plot accuracy in percent against k (columns k, decomposed_percent, finetuned_percent) and the whole layer's."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    heads = {"decomposed": "decomposed", "finetuned": "decomposed, head fine-tuned"}
    for index, (column, label) in enumerate(heads.items()):
        style = _style(index) | {"markersize": 10 - 4 * index, "fillstyle": "none"}
        axes.plot(frame["k"], frame[f"{column}_percent"], label=label, **style)
    axes.axhline(whole, color="black", linestyle=":", label="whole layer")
    axes.set(xlabel="k, features that each class reads", ylabel="accuracy (%)")
    if frame["k"].max() > 8 * frame["k"].min():
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(frame) <= MAX_NAMED_CLASSES:
        axes.set_xticks(frame["k"], frame["k"])
    axes.grid(alpha=0.3)
    legend_below(figure)
    headed(figure, title)
    return png(figure)


def gain_against_labels(curves: Mapping[str, Sequence[tuple[int, float, float]]], title: str) -> bytes:
    """Plot accuracy gained, in points, against labels bought: (labels, mean, deviation) of each kind of run.

    Kinds with the same number of labels are shown side by side; a deviation of NaN is not drawn.
    """
    counts = sorted({labels for points in curves.values() for labels, _mean, _deviation in points})
    figure = Figure(figsize=(max(8.0, 2.2 * len(counts) + 5), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        shift = 0.7 * (index + 0.5) / len(curves) - 0.35
        x = {labels: counts.index(labels) + shift for labels, *_ in points}
        style = _style(index) | {"linestyle": ":", "linewidth": 1}
        axes.plot(
            [x[labels] for labels, *_ in sorted(points)], [mean for _, mean, _ in sorted(points)], label=name, **style
        )
        for labels, mean, deviation in points:
            if not math.isnan(deviation):
                axes.errorbar(x[labels], mean, deviation, color=style["color"], capsize=3)
    for index in range(1, len(counts)):
        axes.axvline(index - 0.5, color="grey", linewidth=0.4)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set(xlabel="labels bought", ylabel="accuracy gained over the warm start (points)")
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside right upper", fontsize=8)
    headed(figure, title)
    return png(figure)


def headed(figure: Figure, title: str) -> None:
    """Put a title over the figure, with as many lines as its width needs."""
    size = 11
    characters = int(figure.get_figwidth() * 72 / (0.62 * size))
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, characters)]
    figure.suptitle("\n".join(lines), fontsize=size)


def legend_below(figure: Figure) -> None:
    """Name what all axes show under them, in as many columns as there is room for."""
    named = {
        name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = int(figure.get_figwidth() * 72 / (6.5 * max(map(len, named)) + 45))
    figure.legend(named.values(), named, loc="outside lower center", ncols=max(1, min(columns, len(named))))


def short(name: str) -> str:
    """Return a name, or the start of a long one."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def name_classes(axis: Axis, classes: Sequence[str], most: int = MAX_NAMED_CLASSES) -> None:
    """Label an axis with the names of up to `most` classes, long names shortened; of more, it shows the indices."""
    if len(classes) > most:
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_label_text("class (index)")
        return
    names = [short(name) for name in classes]
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    wide = isinstance(axis, XAxis) and max(map(len, names)) > 5
    axis.set_ticks(range(len(names)), names, fontsize=8, **(slanted if wide else {}))
    axis.set_label_text("class")


def number_cells(axes: Axes, values: Sequence[Sequence[float]], form: str, white_above: float) -> None:
    """Write the number of each cell of a heat map whose high values are dark."""
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            color = "white" if value > white_above else "black"
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=color)


def png(figure: Figure, dpi: int = 120) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of the line with this index; after eight, markers go with other colours."""
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "linestyle": ["-", "--", "-."][index % 3]}
