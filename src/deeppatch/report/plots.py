"""Plots, as PNG bytes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def accuracy_against_blur(curves: Mapping[str, Sequence[float]], sigmas: Sequence[float], title: str) -> bytes:
    """Plot accuracy in percent of each network (clean first, then the levels) against the blur's sigma in pixels."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    # curves often coincide: hollow markers, smaller from curve to curve, leave every one visible
    for place, (name, values) in enumerate(curves.items()):
        style, size = ["-o", "-s", "-^", "-D", "--v", ":P"][place % 6], max(4.0, 12 - 2 * place)
        axes.plot([0, *sigmas], values, style, label=name, markersize=size, fillstyle="none")
    axes.set(xlabel="sigma of the Gaussian blur (pixels); 0 is clean", ylabel="accuracy (%)", title=title)
    axes.set_xticks([0, *sigmas])
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def suspicion(scores: dict[str, list[float]], method: str, title: str) -> bytes:
    """Plot every filter's score (in points of accuracy) by layer, and each layer's median."""
    figure = Figure(figsize=(max(7.0, 0.32 * len(scores) + 2), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, values in enumerate(scores.values()):
        points = [100 * value for value in values]
        axes.scatter([place] * len(points), points, s=9, alpha=0.45, color="tab:blue", linewidths=0)
        middle = statistics.median(points)
        axes.plot([place - 0.35, place + 0.35], [middle, middle], color="tab:red", linewidth=1.5)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set_xticks(range(len(scores)), list(scores), rotation=90, fontsize=7)
    side = {"perfloss": "low is suspicious", "featswap": "high is suspicious"}.get(method, "")
    axes.set(ylabel=f"score of a filter (points; {side})", title=title)
    axes.plot([], [], color="tab:red", label="median of the layer")
    axes.legend()
    return _png(figure)


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
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
