"""Line charts as coordinates, which the page's template draws as SVG: accuracy against severity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deeppatch.data.corruption_names import GROUPS
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN
from deeppatch.ledger.streams import GAUSSION

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 34, 350, 12, 206
MOST_TYPES = 6  # of more types, charts show the means of groups
TICKS = 5

Point = tuple[float, float, float]  # an estimate and the ends of its interval, which may be nan


@dataclass(frozen=True)
class Line:
    """A line of a chart: the points of an SVG polyline, its markers, and the outline of the band of its interval."""

    name: str
    points: str
    markers: tuple[tuple[float, float], ...]
    band: str


@dataclass(frozen=True)
class Chart:
    """A line chart in a box of WIDTH by HEIGHT; ticks are pairs of a coordinate and a text."""

    title: str
    x_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


def line_chart(title: str, x_title: str, labels: Sequence[str], curves: Mapping[str, Sequence[Point]]) -> Chart:
    """Return a chart of percentages at equal distances along x.

    Args:
        title: What the chart shows.
        x_title: What x is.
        labels: The text under each place along x.
        curves: The points of each network by name, as many as there are labels.

    >>> chart = line_chart("fog", "severity", ["clean", "1"], {"base": [(90, 89, 91), (70, 68, 72)]})
    >>> chart.y_ticks[0][1], chart.y_ticks[-1][1], chart.lines[0].points
    ('60', '100', '34.0,60.5 350.0,157.5')
    """
    values = [value for points in curves.values() for point in points for value in point if not math.isnan(value)]
    ticks = nice_ticks(min(values), max(values))
    x = [LEFT + (RIGHT - LEFT) * place / max(1, len(labels) - 1) for place in range(len(labels))]

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)

    lines = []
    for name, points in curves.items():
        middle = [(round(place, 1), y(estimate)) for place, (estimate, _low, _high) in zip(x, points, strict=True)]
        upper, lower = (
            [
                (round(place, 1), y(point[end]))
                for place, point in zip(x, points, strict=True)
                if not math.isnan(point[end])
            ]
            for end in (2, 1)
        )
        lines.append(Line(name, _spelled(middle), tuple(middle), _spelled(upper + lower[::-1])))
    return Chart(
        title,
        x_title,
        tuple((round(place, 1), label) for place, label in zip(x, labels, strict=True)),
        tuple((y(tick), f"{tick:g}") for tick in ticks),
        tuple(lines),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers at equal distances that enclose two percentages, from 0 to 100 at most.

    >>> nice_ticks(61.2, 93.7)
    [60, 70, 80, 90, 100]
    """
    step = next(each for each in (0.2, 0.5, 1, 2, 5, 10, 20, 25) if (high - low) / each <= TICKS - 0.999 or each == 25)
    first = max(0, math.floor(low / step))
    last = max(math.ceil(high / step), first + 1)
    return [round(step * number, 6) for number in range(first, last + 1)]


def charts_of(ledger: Ledger, estimates: Mapping[tuple[str, str, int], Point], networks: Sequence[str]) -> list[Chart]:
    """Return the charts of accuracy against severity: of each type with several, or of groups where types are many.

    Args:
        ledger: The ledger.
        estimates: The accuracy with its interval by network, view and severity.
        networks: The networks to draw.
    """
    levels: dict[str, list[int]] = {}
    names: dict[str, list[str]] = {}
    for view in ledger.views:
        if view.degraded:
            levels.setdefault(view.kind, []).append(view.severity)
            names.setdefault(view.kind, []).append(view.name.removeprefix(f"{view.kind}-").removeprefix("s="))
    several = {kind: found for kind, found in levels.items() if len(found) > 1}
    charts = []
    if GAUSSION in several:
        kinds = {GAUSSION: several.pop(GAUSSION)}
        charts.append(
            _chart("Published blur", "standard deviation (pixels)", kinds, names[GAUSSION], estimates, networks)
        )
    if len(several) <= MOST_TYPES:
        return charts + [
            _chart(_words(kind), "severity", {kind: found}, names[kind], estimates, networks)
            for kind, found in several.items()
        ]
    for group, members in GROUPS.items():
        kinds = {kind: several[kind] for kind in members if kind in several}
        shared = sorted(set.intersection(*(set(found) for found in kinds.values()))) if kinds else []
        if len(shared) > 1:
            title = f"{group.capitalize()}: mean over {', '.join(map(_words, kinds))}"
            kinds = dict.fromkeys(kinds, shared)
            charts.append(_chart(title, "severity", kinds, [str(each) for each in shared], estimates, networks))
    return charts


def _chart(
    title: str,
    x_title: str,
    kinds: Mapping[str, Sequence[int]],
    labels: Sequence[str],
    estimates: Mapping[tuple[str, str, int], Point],
    networks: Sequence[str],
) -> Chart:
    """Return a chart of the mean over types at the severities that all of them have; one type has its interval."""
    curves = {}
    wanted = [(CLEAN, 0), *((kind, severity) for kind, found in kinds.items() for severity in found)]
    for network in networks:
        if not all((network, *each) in estimates for each in wanted):
            continue
        at = [[estimates[network, kind, severity] for kind in kinds] for severity in next(iter(kinds.values()))]
        means = [
            rows[0] if len(rows) == 1 else (sum(row[0] for row in rows) / len(rows), math.nan, math.nan) for rows in at
        ]
        curves[network] = [estimates[network, CLEAN, 0], *means]
    return line_chart(title, x_title, [CLEAN, *labels], curves)


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _spelled(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
