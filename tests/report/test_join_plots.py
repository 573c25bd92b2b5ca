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
        for bars, rows in zip(axes.containers, (BEFORE, AFTER), strict=True):
            assert [bar.get_height() for bar in bars] == [row[measure] for row in rows.values()]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["cat", "dog", "mean"]
    assert [text.get_text() for text in seen[0].get_legend().get_texts()] == ["before", "after"]


@pytest.mark.parametrize("classes", [1, 10])
def test_few_and_many_classes_have_room(classes):
    rows = {f"class {number}": {"f1": 50.0, "recall": 50.0} for number in range(classes)}
    with Image.open(io.BytesIO(join_plots.before_and_after(rows, rows, MEASURES, "a title"))) as image:
        assert image.width >= 840
        assert image.width / 120 >= 1.1 * classes
