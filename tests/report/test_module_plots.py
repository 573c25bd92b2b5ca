"""The plots of modules: heat maps of what is kept and shared, and the course of a search."""

from __future__ import annotations

import io

import matplotlib.figure
import pandas as pd
import pytest
from PIL import Image

from deeppatch.report import module_plots
from deeppatch.report.plots import MAX_NAMED_CLASSES

SHARES, LAYERS, CLASSES = [[0.25, 1.0, 0.5], [0.75, 0.0, 0.1]], ["a", "b", "c"], ["cat", "dog"]
JACCARD = [[1.0, 0.4], [0.4, 1.0]]
HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "holdout_accuracy": [0.9, 0.8, 0.85], "kept": [1.0, 0.7, 0.6], "best": [False, False, True],
})  # fmt: skip
DRAWN = {
    "kept": lambda change: module_plots.kept(
        [[share * change for share in row] for row in SHARES], LAYERS, CLASSES, ""
    ),
    "overlap": lambda change: module_plots.overlap([[share * change for share in row] for row in JACCARD], CLASSES, ""),
    "search": lambda change: module_plots.search(HISTORY, 0.9 * change, ""),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    seen, add = [], matplotlib.figure.Figure.add_subplot
    watched = lambda self, *a, **k: seen.append(self) or add(self, *a, **k)  # noqa: E731
    monkeypatch.setattr(matplotlib.figure.Figure, "add_subplot", watched)
    return seen


@pytest.mark.parametrize("name", DRAWN)
def test_same_data_give_the_same_png_and_other_data_another(name):
    one, again, other = (DRAWN[name](change) for change in (1, 1, 0.5))
    assert one == again != other
    with Image.open(io.BytesIO(one)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10, "an empty page"


def test_a_cell_is_the_share_of_a_layer_that_a_class_keeps(figures):
    module_plots.kept(SHARES, LAYERS, CLASSES, "a title")
    axes, bar = figures[0].axes
    assert axes.images[0].get_array().tolist() == [[25, 100, 50], [75, 0, 10]]
    assert [text.get_text() for text in axes.texts] == ["25", "100", "50", "75", "0", "10"]
    assert [text.get_text() for text in axes.get_xticklabels()] == LAYERS
    assert [text.get_text() for text in axes.get_yticklabels()] == CLASSES
    assert bar.get_ylabel() == "kernels kept (%)"


def test_a_cell_is_what_two_modules_share(figures):
    module_plots.overlap(JACCARD, CLASSES, "a title")
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == JACCARD
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.40", "0.40", "1.00"]


def test_too_many_classes_have_no_numbers(figures):
    many = MAX_NAMED_CLASSES + 1
    module_plots.overlap([[0.5] * many] * many, [str(number) for number in range(many)], "a title")
    assert not figures[0].axes[0].texts


@pytest.mark.parametrize(("count", "first"), [("epoch", 1), ("generation", 0)])
def test_a_search_is_drawn_from_its_first_column_on_with_what_was_chosen(figures, count, first):
    history = HISTORY.rename(columns={"epoch": count})
    history[count] += first - 1
    module_plots.search(history, 0.95, "a title")
    axes, bar = figures[0].axes
    points, chosen = axes.collections
    assert points.get_offsets().tolist() == [[100, 90], [70, 80], [60, 85]]
    assert points.get_array().tolist() == [first, first + 1, first + 2]
    assert chosen.get_offsets().tolist() == [[60, 85]]
    assert axes.lines[1].get_ydata() == [95, 95]
    assert bar.get_ylabel() == count
    assert all(tick == round(tick) for tick in bar.get_yticks())


@pytest.mark.parametrize("classes", [1, 10, 20, 100])
def test_plots_by_class_are_legible(drawn, legible, classes):
    names = [f"class {label}" for label in range(classes)]
    layers = [f"layer{layer}.0.downsample.0 + 1 tied" for layer in range(8)]
    module_plots.kept([[0.5] * 8] * classes, layers, names, "kernels kept: resnet8 on digits")
    module_plots.overlap([[0.5] * classes] * classes, names, "kernels shared: resnet8 on digits, dissimilarity 43.8 %")
    for figure in drawn:
        legible(figure)
        axes = figure.axes[0]
        assert axes.get_xlabel()
        assert axes.get_ylabel().startswith("class")
        high = figure.transFigure.inverted().transform(axes.get_window_extent())[1, 1]
        assert high > 0.8, "no blank area above"


def test_a_search_is_legible(drawn, legible):
    module_plots.search(HISTORY, 0.95, "a title")
    legible(drawn[0])
