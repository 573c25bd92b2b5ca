"""The plot of corrected weak models: one panel a measure, every class before and after."""

from __future__ import annotations

import io

import matplotlib.figure
import pytest
from PIL import Image

from deeppatch.report import join_plots

MEASURES = {"f1": "F1", "recall": "recall"}
BEFORE = {
    "cat": {"f1": 40.0, "recall": 50.0},
    "dog": {"f1": 20.0, "recall": 10.0},
    "mean": {"f1": 30.0, "recall": 30.0},
}
AFTER = {"cat": {"f1": 80.0, "recall": 75.0}, "dog": {"f1": 60.0, "recall": 0.0}, "mean": {"f1": 70.0, "recall": 37.5}}


def test_same_data_give_the_same_png_and_other_data_another():
    one, again, other = (
        join_plots.before_and_after(BEFORE, after, MEASURES, "a title") for after in (AFTER, AFTER, BEFORE)
    )
    assert one == again != other
    with Image.open(io.BytesIO(one)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10, "an empty page"


def test_bars_are_the_figures_before_and_after(monkeypatch):
    seen, add = [], matplotlib.figure.Figure.add_subplot

    def watched(self, *arguments, **options):
        seen.append(add(self, *arguments, **options))
        return seen[-1]

    monkeypatch.setattr(matplotlib.figure.Figure, "add_subplot", watched)
    join_plots.before_and_after(BEFORE, AFTER, MEASURES, "a title")
    assert [axes.get_ylabel() for axes in seen] == ["F1 (%)", "recall (%)"]
    for axes, measure in zip(seen, MEASURES, strict=True):
        pairs = [
            list(line.get_ydata()) for line in axes.get_lines() if list(line.get_xdata()) in ([0, 0], [1, 1], [2, 2])
        ]
        assert pairs == [[BEFORE[name][measure], AFTER[name][measure]] for name in BEFORE]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["cat", "dog", "mean"]
        low, high = axes.get_ylim()
        assert low <= min(map(min, pairs)) < max(map(max, pairs)) <= high
    assert [text.get_text() for text in seen[1].texts] == ["+25.0", "-10.0", "+7.5"]
    shown = [text.get_text() for text in seen[0].figure.legends[0].get_texts()]
    assert shown == ["before", "after, not lower", "after, lower"]


def test_a_small_change_is_seen(drawn):
    """The axis ends near the data, so that half a point of 90 is most of its height."""
    rows = {"cat": {"f1": 90.0}, "mean": {"f1": 90.0}}
    better = {"cat": {"f1": 90.5}, "mean": {"f1": 90.5}}
    join_plots.before_and_after(rows, better, {"f1": "F1"}, "a title")
    low, high = drawn[0].axes[0].get_ylim()
    assert high - low < 1


@pytest.mark.parametrize("classes", [1, 10, 20, 100])
def test_few_and_many_classes_have_room(drawn, legible, classes):
    rows = {f"class {number}": {"f1": 50.0, "recall": 50.0} for number in range(classes)}
    rows["mean"] = {"f1": 50.0, "recall": 50.0}
    join_plots.before_and_after(rows, rows, MEASURES, "a title")
    legible(drawn[0])
    assert 8 <= drawn[0].get_figwidth() <= 16
    axes = drawn[0].axes[0]
    assert bool(axes.texts) == (classes <= 20)
    assert axes.get_xlabel() == ("class" if classes <= 20 else "class (index)")
