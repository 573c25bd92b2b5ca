"""What every picture must be: labelled, and legible to its edges; and ledgers of random answers to write pages of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import LedgerView, Network, Outcomes
from deeppatch.ledger.streams import group_of

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


# --- a ledger of random answers, with names that must be escaped

IMAGES = 60
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>|`*_'
CLASSES = ("cat", "dog", "<b>owl</b>", HOSTILE)
GRID = [(kind, severity) for kind in ("gaussian_noise", "fog", "snow", "contrast") for severity in (1, 3, 5)]


def a_view(name: str, kind: str, severity: int, order: np.ndarray | None = None) -> LedgerView:
    image = np.arange(IMAGES) if order is None else order
    return LedgerView(name, kind, severity, group_of(kind), kind == "snow", image % len(CLASSES), image)


def a_ledger(
    levels: list[tuple[str, int]], networks: tuple[str, ...], *, about: dict[str, Any] | None = None
) -> Ledger:
    """Random answers of networks, of which the later are better, on clean images, these levels, and the mixed stream.

    A network whose name starts with `switched` routes, and one called `vote` is not on the mixed stream.
    """
    draw = np.random.default_rng(4)
    views = [a_view("clean", "clean", 0), *(a_view(f"{kind}-{severity}", kind, severity) for kind, severity in levels)]
    views += [a_view("mixed", "mixed", 0, draw.permutation(IMAGES))] if levels else []
    outcomes = {}
    for index, name in enumerate(networks):
        for view in views if name != "vote" else views[:-1]:
            right = draw.random(IMAGES) < 0.8 - 0.08 * view.severity + 0.06 * index * (view.severity > 0)
            wrong = (view.labels + draw.integers(1, len(CLASSES), IMAGES)) % len(CLASSES)
            sure = draw.uniform(0.3, 1, IMAGES)
            routed = draw.integers(0, 2, IMAGES) if name.startswith("switched") else None
            prediction = np.where(right, view.labels, wrong)
            outcomes[name, view.name] = Outcomes(prediction, sure, np.log(sure), (1 - sure) ** 2, routed)
    rows = {
        name: Network(name, f"digest of {name}", name, None if name == networks[0] else 7, 1000 + index, 2048 * index,
                      facts={"command": f"python src/correct.py -c {name}"})
        for index, name in enumerate(networks)
    }  # fmt: skip
    return Ledger(networks[0], rows, tuple(views), outcomes, CLASSES, about or {})


@pytest.fixture(scope="session")
def ledger_of() -> Callable[..., Ledger]:
    """The function that makes a ledger of random answers."""
    return a_ledger


@pytest.fixture(scope="session")
def blur_and_grid() -> Ledger:
    """Four networks on the levels of blur and on a small grid."""
    about = {"dataset": "cifar10", "model": "resnet32", "command": "python src/compare.py", "date": "2026-11-26",
             "seed": 2021, "hold_out": None, "notes": ["val was seen"]}  # fmt: skip
    levels = [("gaussion", severity) for severity in range(1, 4)] + GRID
    return a_ledger(levels, ("pretrained", "finetuned", "vote", "switched"), about=about)


@pytest.fixture(scope="session")
def hostile() -> Ledger:
    """A ledger in which every text that comes from users tries to be markup."""
    about = {
        "dataset": f"folder:{HOSTILE}",
        "model": f"module:{HOSTILE}",
        "command": f"deeppatch compare {HOSTILE} ```",
    }
    return a_ledger([("fog", 1), ("fog", 2), (HOSTILE, 1)], ("pretrained", f"switched {HOSTILE}"), about=about)


@pytest.fixture(scope="session")
def pixels() -> Callable[[Ledger], dict[str, np.ndarray]]:
    """Random pixels of every row of every view of a ledger."""

    def made(ledger: Ledger) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(8)
        return {view.name: draw.integers(0, 256, (IMAGES, 3, 8, 8), dtype=np.uint8) for view in ledger.views}

    return made
