"""Plots are PNG bytes that repeat, and that depend on what is plotted."""

from __future__ import annotations

import io
from collections.abc import Callable
from statistics import median

import matplotlib.figure
import pandas as pd
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
FREQUENCY, CHOSEN = [[0.9, 0.1, 0.5, 0.5], [0.0, 0.3, 0.8, 0.9]], [[0, 2], [3, 2]]
SHARED, NAMES = [[3, 1], [1, 3]], ["ant", "bee"]
ESSENTIAL = pd.DataFrame({
    "set": ["k=5"] * 2 + ["lowest gates"] * 2, "class": NAMES * 2, "images": [50, 20] * 2, "whole": [40, 15] * 2,
    "noise_at": [10.0, 3.0, 30.0, 12.0], "noise_at_spread": [5.0, 1.0, 2.0, 4.0],
    "noise_elsewhere": [35.0, 14.0, 5.0, 1.0], "noise_elsewhere_spread": [1.0, 2.0, 3.0, 0.5],
})  # fmt: skip
NAN = float("nan")
GAINED = {
    "hybrid": [(50, 2.5, 0.4), (10, 1.0, 0.5)],
    "gini": [(50, -0.5, 0.3), (10, 0.2, NAN)],
    "none": [(0, 0.1, NAN)],
}
BY_K = pd.DataFrame({"k": [5, 10, 64], "decomposed_percent": [70.0, 80, 92], "finetuned_percent": [85.0, 89, 92.5]})


def many(classes: int, features: int) -> dict[str, Callable[[], bytes]]:
    """The plots by class, of so many of them."""
    names = [f"class {label}" for label in range(classes)]
    frequency = torch.rand(classes, features).tolist()
    chosen = [[label % features, (label + 1) % features] for label in range(classes)]
    zeros = {f"{name}_spread": [0.5] * classes for name in ("noise_at", "noise_elsewhere")}
    frame = pd.DataFrame({
        "set": "k=5", "class": names, "images": 5, "whole": 4, "noise_at": 2, "noise_elsewhere": 3, **zeros,
    })  # fmt: skip
    return {
        "influence": lambda: plots.influence(frequency, chosen, names, "a title"),
        "overlap": lambda: plots.overlap(torch.eye(classes).long().tolist(), names, "a title"),
        "essential": lambda: plots.essential(frame, "a title"),
    }


PLOTS: dict[str, list[Callable[[], bytes]]] = {
    "accuracy": [
        lambda: plots.accuracy_against_blur(CURVES, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur({**CURVES, "switched": [92.9, 88.0, 80.0, 60.0]}, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur({"pretrained": CURVES["pretrained"]}, SIGMAS, "a title"),
        lambda: plots.accuracy_against_blur(CURVES, SIGMAS, "another title"),
    ],
    "suspicion": [
        lambda: plots.filter_scores(SCORES, "points", "a title", descending=False),
        lambda: plots.filter_scores(SCORES, "points", "a title", descending=True),
        lambda: plots.filter_scores(
            {**SCORES, "conv1": [0.01, -0.02, 0.0, 0.05]}, "points", "a title", descending=False
        ),
    ],
    "ratio": [
        lambda: plots.ratio_curve(CURVE, 0.25, "a title"),
        lambda: plots.ratio_curve(CURVE, 0.35, "a title"),
        lambda: plots.ratio_curve({**CURVE, "0.35": {"mean": 0.71, "standard_error": 0.03}}, 0.25, "a title"),
    ],
    "influence": [
        lambda: plots.influence(FREQUENCY, CHOSEN, NAMES, "a title"),
        lambda: plots.influence(FREQUENCY[::-1], CHOSEN, NAMES, "a title"),
        lambda: plots.influence(FREQUENCY, [[0, 1], [3, 2]], NAMES, "a title"),
    ],
    "overlap": [
        lambda: plots.overlap(SHARED, NAMES, "a title"),
        lambda: plots.overlap([[3, 2], [2, 3]], NAMES, "a title"),
        lambda: plots.overlap([[0, 0], [0, 0]], NAMES, "a title"),
    ],
    "essential": [
        lambda: plots.essential(ESSENTIAL, "a title"),
        lambda: plots.essential(ESSENTIAL.assign(whole=39), "a title"),
        lambda: plots.essential(ESSENTIAL.assign(noise_at_spread=0.0), "a title"),
    ],
    "gained": [
        lambda: plots.gain_against_labels(GAINED, "a title"),
        lambda: plots.gain_against_labels({**GAINED, "none": [(0, 0.6, NAN)]}, "a title"),
        lambda: plots.gain_against_labels({**GAINED, "none": [(0, 0.1, 0.2)]}, "a title"),
        lambda: plots.gain_against_labels({"none": GAINED["none"]}, "a title"),
    ],
    "by k": [
        lambda: plots.accuracy_against_k(BY_K, 93.0, "a title"),
        lambda: plots.accuracy_against_k(BY_K, 92.0, "a title"),
        lambda: plots.accuracy_against_k(BY_K[:1], 93.0, "a title"),
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
    """The axes that are drawn on; nothing becomes a picture."""
    seen: list[Axes] = []
    add = matplotlib.figure.Figure.add_subplot

    def watched(self, *arguments, **options):
        seen.append(add(self, *arguments, **options))
        return seen[-1]

    monkeypatch.setattr(matplotlib.figure.Figure, "add_subplot", watched)
    monkeypatch.setattr(plots, "png", lambda _figure: b"")
    return seen


def test_accuracy_is_drawn_from_clean_to_the_strongest_blur(axes):
    plots.accuracy_against_blur(CURVES, SIGMAS, "a title")
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert list(lines) == ["pretrained", "switched"]
    assert list(lines["switched"].get_xdata()) == [0, 0.5, 1.0, 2.0]
    assert list(lines["switched"].get_ydata()) == CURVES["switched"]
    assert axes[0].figure.get_suptitle() == "a title"
    assert named_below(axes[0]) == ["pretrained", "switched"]


def named_below(panel: Axes) -> list[str]:
    """The names in the legend of the figure."""
    return [text.get_text() for text in panel.figure.legends[0].get_texts()]


def test_gains_over_the_first_network_have_a_panel_of_their_own(axes):
    plots.accuracy_against_blur({**CURVES, "twin": CURVES["switched"]}, SIGMAS, "a title")
    _accuracy, gains = axes
    assert gains.get_ylabel() == "gain over pretrained (points)"
    one, twin = gains.get_lines()[:2]
    assert list(one.get_ydata()) == list(twin.get_ydata()) == pytest.approx([-0.1, 8, 40, 50])
    assert list(one.get_xdata()) == pytest.approx([0, 0.5, 1, 2], abs=0.05)
    assert not set(one.get_xdata()) & set(twin.get_xdata()), "neither hides the other"


def test_one_network_has_no_gains(axes):
    plots.accuracy_against_blur({"pretrained": CURVES["pretrained"]}, SIGMAS, "a title")
    assert len(axes) == 1


def test_more_networks_than_line_styles_are_all_drawn(axes):
    many = {f"network {n}": [90 - n, 80 - n, 70 - n, 60 - n] for n in range(14)}
    plots.accuracy_against_blur(many, SIGMAS, "a title")
    lines = axes[0].get_lines()
    assert [line.get_label() for line in lines] == list(many)
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(many)


def test_suspicion_shows_every_filter(axes):
    plots.filter_scores(SCORES, "points", "a title", descending=False)
    drawn = [sorted(found) for dots in axes[0].collections if (found := dots.get_offsets()[:, 1].tolist())]
    assert drawn == [pytest.approx(sorted(values)) for values in SCORES.values()]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == list(SCORES)
    assert "points; low is suspicious" in axes[0].get_ylabel()
    plots.filter_scores(SCORES, "points", "a title", descending=True)
    assert "high is suspicious" in axes[1].get_ylabel()


def test_suspicion_marks_the_median_of_each_layer(axes):
    scores = {"even": [0.0, 0.01, 0.02, 0.05], "odd": [0.3, 0.1, 0.2]}
    plots.filter_scores(scores, "points", "a title", descending=False)
    bars = [
        line.get_ydata()[0]
        for line in axes[0].get_lines()
        if line.get_color() == plots.COLOURS[1] and len(line.get_xdata())
    ]
    assert bars == pytest.approx([median(values) for values in scores.values()])


def test_ratio_curve_is_in_percent_with_its_errors(axes):
    plots.ratio_curve(CURVE, 0.25, "a title")
    line = axes[0].containers[0].lines[0]
    assert list(line.get_xdata()) == [0.15, 0.25, 0.35]
    assert list(line.get_ydata()) == pytest.approx([60, 70, 71])
    segments = axes[0].containers[0].lines[2][0].get_segments()
    assert [(top - low) / 2 for (_, low), (_, top) in (s.tolist() for s in segments)] == pytest.approx([2, 2, 1])
    assert set(named_below(axes[0])) == {"chosen: 0.25", "mean ± one standard error"}


def test_plotting_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plots.filter_scores(SCORES, "points", "a title", descending=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("classes", "features"), [(2, 4), (1000, 2048)])
@pytest.mark.parametrize("name", ["influence", "overlap", "essential"])
def test_plots_by_class_fit_a_page_whatever_the_number_of_classes(monkeypatch, classes, features, name):
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda *given, **options: save(*given, **{**options, "dpi": 20})
    )
    with Image.open(io.BytesIO(many(classes, features)[name]())) as image:
        width, height = image.size
    assert 4 <= width / 20 <= 17, "inches"
    assert 3 <= height / 20 <= 14


@pytest.mark.parametrize(("classes", "named"), [(20, True), (21, False)])
def test_few_classes_are_named_and_many_are_not(axes, classes, named):
    for make in many(classes, 64).values():
        make()
    influence, overlap, essential = axes
    names = [f"class {label}" for label in range(classes)]
    for labels in (influence.get_yticklabels(), overlap.get_yticklabels(), essential.get_xticklabels()):
        assert ([label.get_text() for label in labels] == names) == named
    assert len(influence.patches) == (2 * classes if named else 0)
    assert ("framed" in influence.figure.get_suptitle()) == named
    assert len(overlap.texts) == (classes**2 if named else 0)


def test_influence_frames_the_chosen_features_of_each_class(axes):
    plots.influence(FREQUENCY, CHOSEN, NAMES, "a title")
    assert axes[0].images[0].get_array().tolist() == FREQUENCY
    assert axes[0].images[0].get_clim() == (0, 1)
    framed = [(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in axes[0].patches]
    assert framed == [(0, 0), (2, 0), (3, 1), (2, 1)]


def test_overlap_shows_each_count_in_its_place(axes):
    plots.overlap([[3, 1], [0, 2]], NAMES, "a title")
    assert axes[0].images[0].get_array().tolist() == [[3, 1], [0, 2]]
    shown = {text.get_position(): text.get_text() for text in axes[0].texts}
    assert shown == {(0, 0): "3", (1, 0): "1", (0, 1): "0", (1, 1): "2"}, "columns, then rows"


def test_essential_has_a_panel_for_each_set_in_percent_of_the_class_s_images(axes):
    plots.essential(ESSENTIAL, "a title")
    assert [panel.get_title() for panel in axes] == ["k=5", "lowest gates"]
    for panel, rows in zip(axes, (ESSENTIAL[:2], ESSENTIAL[2:]), strict=True):
        bars = [group for group in panel.containers if group.get_label() in plots.NOISE_LABELS.values()]
        heights = {
            group.get_label(): [bar.get_height() for bar in group] for group in bars if hasattr(group, "patches")
        }
        want = {label: (100 * rows[column] / rows["images"]).tolist() for column, label in plots.NOISE_LABELS.items()}
        assert heights == want


def test_accuracy_against_k_shows_both_heads_and_the_whole_layer(axes):
    plots.accuracy_against_k(BY_K, 93.0, "a title")
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert list(lines) == ["decomposed", "decomposed, head fine-tuned", "whole layer"]
    assert list(lines["decomposed"].get_xdata()) == [5, 10, 64]
    assert list(lines["decomposed"].get_ydata()) == [70, 80, 92]
    assert list(lines["decomposed, head fine-tuned"].get_ydata()) == [85, 89, 92.5]
    assert set(lines["whole layer"].get_ydata()) == {93}


def test_gains_stand_over_the_labels_that_they_took_with_their_deviations(axes):
    plots.gain_against_labels(GAINED, "a title")
    (panel,) = axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "10", "50"]
    assert panel.get_legend_handles_labels()[1] == list(GAINED)
    lines = {line.get_label(): line for line in panel.get_lines() if line.get_label() in GAINED}
    for name, points in GAINED.items():
        assert [panel.get_xticks()[round(x)] for x in lines[name].get_xdata()] == [
            [0, 10, 50].index(labels) for labels, *_ in sorted(points)
        ]  # fmt: skip
        assert list(lines[name].get_ydata()) == [mean for _, mean, _ in sorted(points)]
    spans = [(high - low) / 2 for bars in panel.containers for ((_, low), (_, high)) in bars.lines[2][0].get_segments()]
    assert spans == pytest.approx([0.4, 0.5, 0.3]), "none where the deviation is unknown"
    places = [x for line in lines.values() for x in line.get_xdata()]
    assert len(set(places)) == len(places), "none hides another"


LONG = [f"a class of a long name that goes on, number {label}" for label in range(20)]


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_legible(drawn, legible, name):
    for make in PLOTS[name]:
        make()
        legible(drawn[-1])


@pytest.mark.parametrize("classes", [1, 2, 20, 100])
@pytest.mark.parametrize("name", ["influence", "overlap", "essential"])
def test_plots_by_class_are_legible_whatever_the_number_of_classes(drawn, legible, name, classes):
    many(classes, 64)[name]()
    legible(drawn[0])


def test_long_names_are_shortened_and_long_titles_broken(drawn, legible):
    plots.overlap([[1] * 20] * 20, LONG, "a title " * 40)
    legible(drawn[0])
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert all(len(name) == plots.MAX_NAME and name.endswith("…") for name in names)
    assert drawn[0].get_suptitle().count("\n") > 1


@pytest.mark.parametrize("networks", [1, 4, 14])
@pytest.mark.parametrize("levels", [1, 6])
def test_accuracy_is_legible_for_few_and_many(drawn, legible, networks, levels):
    curves = {f"patched by method number {n}": [90.0 - n] * (levels + 1) for n in range(networks)}
    plots.accuracy_against_blur(curves, [0.5 * (level + 1) for level in range(levels)], "resnet8, 10,000 test images")
    legible(drawn[0])
