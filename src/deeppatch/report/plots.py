"""Plots, as PNG bytes."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# the most classes that can be named on an axis
MAX_NAMED_CLASSES = 20
NOISE_LABELS = {"whole": "untouched", "noise_at": "noise at its features", "noise_elsewhere": "noise at all others"}


def accuracy_against_blur(curves: Mapping[str, Sequence[float]], sigmas: Sequence[float], title: str) -> bytes:
    """Plot accuracy in percent of each network (clean first, then the levels) against the blur's sigma in pixels."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    # curves often coincide, so markers are hollow and become smaller from curve to curve
    for index, (name, values) in enumerate(curves.items()):
        style, size = ["-o", "-s", "-^", "-D", "--v", ":P"][index % 6], max(4.0, 12 - 2 * index)
        axes.plot([0, *sigmas], values, style, label=name, markersize=size, fillstyle="none")
    axes.set(xlabel="sigma of the Gaussian blur (pixels); 0 is clean", ylabel="accuracy (%)", title=title)
    axes.set_xticks([0, *sigmas])
    axes.grid(alpha=0.3)
    axes.legend()
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
    figure = Figure(figsize=(max(7.0, 0.32 * len(scores) + 2), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, values in enumerate(scores.values()):
        axes.scatter([index] * len(values), values, s=9, alpha=0.45, color="tab:blue", linewidths=0)
        middle = statistics.median(values)
        axes.plot([index - 0.35, index + 0.35], [middle, middle], color="tab:red", linewidth=1.5)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set_xticks(range(len(scores)), list(scores), rotation=90, fontsize=7)
    side = ("high" if descending else "low") + " is suspicious"
    axes.set(ylabel=f"score of a filter ({unit}; {side})", title=title)
    axes.plot([], [], color="tab:red", label="median of the layer")
    axes.legend()
    return png(figure)


def ratio_curve(curve: dict[str, dict[str, float]], chosen: float, title: str) -> bytes:
    """Plot mean accuracy in percent over the blur levels, with its standard error, against the patched ratio."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    ratios = [float(ratio) for ratio in curve]
    means = [100 * point["mean"] for point in curve.values()]
    errors = [100 * point["standard_error"] for point in curve.values()]
    axes.errorbar(ratios, means, errors, fmt="-o", capsize=3)
    axes.axvline(chosen, color="tab:red", linestyle="--", label=f"chosen: {chosen:g}")
    axes.set(
        xlabel="share of each layer's filters that is patched", ylabel="mean accuracy over the levels (%)", title=title
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def influence(
    frequency: Sequence[Sequence[float]], chosen: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> bytes:
    """Plot a class-by-feature heat map of frequencies in [0, 1], the chosen features of each class framed."""
    features, few = len(frequency[0]), len(classes) <= MAX_NAMED_CLASSES
    figure = Figure(figsize=(max(8.0, min(16.0, 0.2 * features + 3)), 4.8 if few else 9.0), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(frequency, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if few:
        for row, indices in enumerate(chosen):
            for index in indices:
                corner = (index - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="tab:red", linewidth=1.4))
        axes.set_yticks(range(len(classes)), classes)
        title += "\nframed: the class's most influential features"
    axes.set(xlabel="feature of the last layer", ylabel="class", title=title)
    figure.colorbar(image, label="share of the class's images\nwith it among their k strongest")
    return png(figure)


def overlap(shared: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Plot a class-by-class heat map of how many features two classes share, with names and numbers for few classes."""
    few = len(classes) <= MAX_NAMED_CLASSES
    figure = Figure(figsize=(0.5 * len(classes) + 4, 0.5 * len(classes) + 2.5) if few else (9, 8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shared, cmap="Blues", vmin=0, interpolation="nearest")
    if few:
        half = max(map(max, shared)) / 2
        for row, counts in enumerate(shared):
            for column, count in enumerate(counts):
                axes.text(column, row, str(count), ha="center", va="center", color="white" if count > half else "black")
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
    axes.set_title(title, fontsize=9, wrap=True)
    figure.colorbar(image, label="features in common", shrink=0.8)
    return png(figure)


def essential(frame: pd.DataFrame, title: str) -> bytes:
    """Plot correct images by class, in percent of the class's images, one panel for each set of features.

    Columns of `frame`: set, class, images, whole, noise_at, noise_elsewhere and the two spreads, in images.
    """
    sets = frame["set"].unique()
    many = frame["class"].nunique() > MAX_NAMED_CLASSES
    figure = Figure(figsize=(9, 2.6 * len(sets) + 0.8), layout="constrained")
    for index, name in enumerate(sets):
        axes = figure.add_subplot(len(sets), 1, index + 1)
        rows = frame[frame["set"] == name]
        for shift, (column, label) in enumerate(NOISE_LABELS.items()):
            spread = (
                100 * rows[f"{column}_spread"] / rows["images"] if f"{column}_spread" in rows and not many else None
            )
            x = [position + 0.27 * (shift - 1) for position in range(len(rows))]
            axes.bar(x, 100 * rows[column] / rows["images"], 0.27, yerr=spread, label=label, capsize=2)
        axes.set_xticks([] if many else range(len(rows)), [] if many else rows["class"], fontsize=8)
        axes.set(ylabel="correct (%)", ylim=(0, 105), title=name)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, fontsize=8)
    figure.suptitle(title)
    return png(figure)


def accuracy_against_k(frame: pd.DataFrame, whole: float, title: str) -> bytes:
    """Plot accuracy in percent against k (columns k, decomposed_percent, finetuned_percent) and the whole layer's."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(frame["k"], frame["decomposed_percent"], "-o", label="decomposed", fillstyle="none")
    axes.plot(frame["k"], frame["finetuned_percent"], "-s", label="decomposed, head fine-tuned", fillstyle="none")
    axes.axhline(whole, color="grey", linestyle="--", label="whole layer")
    axes.set(xlabel="k, features that each class reads", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def gain_against_labels(curves: Mapping[str, Sequence[tuple[int, float, float]]], title: str) -> bytes:
    """Plot accuracy gained, in points, against labels bought: (labels, mean, deviation) of each kind of run.

    Kinds with the same number of labels are shown side by side; a deviation of NaN is not drawn.
    """
    counts = sorted({labels for points in curves.values() for labels, _mean, _deviation in points})
    figure = Figure(figsize=(max(7.0, 2.2 * len(counts) + 4), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        shift = 0.7 * (index + 0.5) / len(curves) - 0.35
        labels, means, deviations = zip(*sorted(points), strict=True)
        x = [counts.index(count) + shift for count in labels]
        errors = [0 if math.isnan(deviation) else deviation for deviation in deviations]
        marker, colour = "osD^v"[index // 10 % 5], f"C{index % 10}"
        axes.errorbar(x, means, errors, fmt=f":{marker}", color=colour, capsize=3, linewidth=1, label=name)
    for index in range(1, len(counts)):
        axes.axvline(index - 0.5, color="grey", linewidth=0.4)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set(xlabel="labels bought", ylabel="accuracy gained over the warm start (points)", title=title)
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return png(figure)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
