"""What every picture must be: labelled, and legible to its edges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

SMALLEST_FONT = 7


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that would become a file, in order; rendering them is slow and adds nothing."""
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_arguments, **_options: seen.append(self))
    return seen


@pytest.fixture
def legible() -> Callable[[Figure], None]:
    """A check that all axes are named, and that no text is tiny, leaves the figure, or lies upon another text."""

    def check(figure: Figure) -> None:
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel(), "an axis says what it shows"
        texts = shown_texts(figure)
        boxes = {text: text.get_window_extent() for text in texts}
        for text, box in boxes.items():
            assert text.get_fontsize() >= SMALLEST_FONT, text
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= figure.bbox.width + 1, text
            assert box.y1 <= figure.bbox.height + 1, text
        # the box around slanted text is larger than the text
        inner = {text: boxes[text].shrunk(0.9, 0.9).extents for text in texts if text.get_rotation() % 90 == 0}
        for (one, (left, low, right, high)), (other, (x0, y0, x1, y1)) in combinations(inner.items(), 2):
            assert right <= x0 or x1 <= left or high <= y0 or y1 <= low, (one, other)

    return check


def shown_texts(figure: Figure) -> list[Text]:
    """All texts that are drawn: of tick labels only those within the limits of their axis."""
    hidden = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in beyond_limits(axes, axis)}
    found = figure.findobj(lambda artist: isinstance(artist, Text))
    return [text for text in found if text.get_visible() and text.get_text().strip() and text not in hidden]


def beyond_limits(axes: Axes, axis: Axis) -> list[Text]:
    """The tick labels that are not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_major_ticks()
    found = [label for tick in ticks if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)]
    return found + [axis.get_offset_text()]
