"""Plots are PNG bytes that repeat, and that depend on what is plotted."""

from __future__ import annotations

import io
from collections.abc import Callable
from statistics import median

import matplotlib.figure
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from deeppatch.report import plots

SIGMAS = (0.5, 1.0, 2.0)
CURVES = {"pretrained": [93.0, 80.0, 40.0, 20.0], "switched": [92.9, 88.0, 80.0, 70.0]}
SCORES = {"conv1": [0.01, -0.02, 0.0, 0.03], "layer1.0.conv1": [0.1, 0.2]}
CURVE = {
    "0.15": {"mean": 0.6, "standard_error": 0.02}, "0.25": {"mean": 0.7, "standard_error": 0.02},
    "0.35": {"mean": 0.71, "standard_error": 0.01},
}  # fmt: skip

PLOTS: dict[str, list[Callable[[], bytes]]] = {
    "accuracy": [
        lambda: plots.accuracy_against_blur(CURVES, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur({**CURVES, "switched": [92.9, 88.0, 80.0, 60.0]}, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur({"pretrained": CURVES["pretrained"]}, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur(CURVES, SIGMAS, "another title"),
    ],
    "suspicion": [
        lambda: plots.suspicion(SCORES, "perfloss", "a title"),
        lambda: plots.suspicion(SCORES, "featswap", "a title"),
        lambda: plots.suspicion({**SCORES, "conv1": [0.01, -0.02, 0.0, 0.05]}, "perfloss", "a title"),
    ],
    "ratio": [
        lambda: plots.ratio_curve(CURVE, 0.25, "a title"),
        lambda: plots.ratio_curve(CURVE, 0.35, "a title"),
        lambda: plots.ratio_curve({**CURVE, "0.35": {"mean": 0.71, "standard_error": 0.03}}, 0.25, "a title"),
    ],
}


@pytest.mark.parametrize("name", PLOTS)
def test_same_data_give_the_same_png_and_other_data_another(name):
    makers = PLOTS[name]
    images = [make() for make in makers]
    assert images[0] == makers[0]()
    assert len(set(images)) == len(makers)
    for content in images:
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            colours = image.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 10, "an empty page"


@pytest.fixture
def axes(monkeypatch) -> list[Axes]:
    """The axes that are drawn on."""
    seen: list[Axes] = []
    add = matplotlib.figure.Figure.add_subplot

    def watched(self, *arguments, **options):
        seen.append(add(self, *arguments, **options))
        return seen[-1]

    monkeypatch.setattr(matplotlib.figure.Figure, "add_subplot", watched)
    return seen


def test_accuracy_is_drawn_from_clean_to_the_strongest_blur(axes):
    plots.accuracy_against_blur(CURVES, SIGMAS, "a title")
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert list(lines) == ["pretrained", "switched"]
    assert list(lines["switched"].get_xdata()) == [0, 0.5, 1.0, 2.0]
    assert list(lines["switched"].get_ydata()) == CURVES["switched"]
    assert axes[0].get_title() == "a title"
    assert {text.get_text() for text in axes[0].get_legend().get_texts()} == {"pretrained", "switched"}


def test_more_networks_than_line_styles_are_all_drawn(axes):
    many = {f"network {n}": [90 - n, 80 - n, 70 - n, 60 - n] for n in range(14)}
    plots.accuracy_against_blur(many, SIGMAS, "a title")
    assert [line.get_label() for line in axes[0].get_lines()] == list(many)


def test_suspicion_shows_every_filter_in_points(axes):
    plots.suspicion(SCORES, "perfloss", "a title")
    drawn = [sorted(dots.get_offsets()[:, 1].tolist()) for dots in axes[0].collections]
    assert drawn == [pytest.approx(sorted(100 * value for value in values)) for values in SCORES.values()]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == list(SCORES)
    assert "low is suspicious" in axes[0].get_ylabel()
    plots.suspicion(SCORES, "featswap", "a title")
    assert "high is suspicious" in axes[1].get_ylabel()


def test_suspicion_marks_the_median_of_each_layer(axes):
    scores = {"even": [0.0, 0.01, 0.02, 0.05], "odd": [0.3, 0.1, 0.2]}
    plots.suspicion(scores, "perfloss", "a title")
    bars = [
        line.get_ydata()[0] for line in axes[0].get_lines() if line.get_color() == "tab:red" and len(line.get_xdata())
    ]
    assert bars == pytest.approx([100 * median(values) for values in scores.values()])


def test_ratio_curve_is_in_percent_with_its_errors(axes):
    plots.ratio_curve(CURVE, 0.25, "a title")
    line = axes[0].containers[0].lines[0]
    assert list(line.get_xdata()) == [0.15, 0.25, 0.35]
    assert list(line.get_ydata()) == pytest.approx([60, 70, 71])
    segments = axes[0].containers[0].lines[2][0].get_segments()
    assert [(top - low) / 2 for (_, low), (_, top) in (s.tolist() for s in segments)] == pytest.approx([2, 2, 1])
    assert "chosen: 0.25" in {text.get_text() for text in axes[0].get_legend().get_texts()}


def test_plotting_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plots.suspicion(SCORES, "perfloss", "a title")
    assert torch.equal(torch.get_rng_state(), before)
