"""The tables of the page: accuracies with intervals, further measures, differences by type and severity, cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from deeppatch import metrics
from deeppatch.data.corruption_names import COMMON, GROUPS
from deeppatch.ledger import pools, summary
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, LATENCY, MIXED

Estimate = tuple[float, float, float]  # an estimate and the ends of its interval
Numbers = Mapping[tuple[str, str, int, str], Estimate]  # by network, view, severity and measure

MINUS = "\N{MINUS SIGN}"
HEADLINES = (CLEAN, pools.BLURRED, pools.ALL, pools.DEGRADED, pools.HELD_OUT, MIXED)
IN_FIRST_TABLE = ("accuracy", "change", "repair", "break")
MOST_COLUMNS = 8  # beside the names; wider tables are set in parts, one below the other
STRONGEST = 15.0  # points at which a cell of the heat map has its full colour


@dataclass(frozen=True)
class Cell:
    """A cell: a number, what it gains over the base, an interval, and `gain` or `loss` where one is beyond doubt."""

    text: str
    change: str = ""
    interval: str = ""
    sign: str = ""

    def __str__(self) -> str:
        """Return the cell on one line."""
        below = f"{self.change}: {self.interval}" if self.change else self.interval
        return f"{self.text} ({below})" if below else self.text


@dataclass(frozen=True)
class Table:
    """A table: the titles of its columns, the first of which is that of the rows' names, and notes to be set below."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    notes: Sequence[tuple[str, str]] = ()

    @property
    def parts(self) -> list[Table]:
        """The table in parts of equal width, each with MOST_COLUMNS columns at most, and with its notes."""
        width = len(self.columns) - 1
        step = math.ceil(width / math.ceil(width / MOST_COLUMNS)) if width else 1
        found = []
        for first in range(0, width, step):
            titles = list(self.columns[1:][first : first + step])
            rows = [(name, list(cells[first : first + step])) for name, cells in self.rows]
            notes = [note for note in self.notes if note[0] in titles]
            found.append(Table([self.columns[0], *titles], rows, notes))
        return found


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: its text, how strong its colour is in [0, 1], and the sign."""

    text: str
    strength: float
    sign: str


@dataclass(frozen=True)
class HeatMap:
    """What a network gains over the base by type and severity; rows are (group, type, cells)."""

    network: str
    severities: Sequence[int]
    rows: Sequence[tuple[str, str, Sequence[HeatCell]]]


def numbers_of(tidy: pd.DataFrame) -> dict[tuple[str, str, int, str], Estimate]:
    """Return the estimates of a ledger's tidy table by network, view, severity and measure."""
    columns = (tidy[name] for name in ("network", "view", "severity", "measure", "estimate", "low", "high"))
    return {
        (str(network), str(view), int(severity), str(measure)): (float(estimate), float(low), float(high))
        for network, view, severity, measure, estimate, low, high in zip(*columns, strict=True)
    }


def names_in(numbers: Numbers) -> list[str]:
    """Return the names of the rows: the networks, and means over those that differ by seed."""
    return list(dict.fromkeys(key[0] for key in numbers))


def accuracies(ledger: Ledger, numbers: Numbers) -> Table:
    """Return the accuracy of each network on the means that matter most, below it what it gains over the base."""
    kinds = list(dict.fromkeys(view.kind for view in ledger.views if view.degraded))
    known = {view for _network, view, severity, _measure in numbers if severity == 0}
    means = [name for name in HEADLINES if name in known and not (name == pools.DEGRADED and len(kinds) == 1)]
    # without groups and the published blur, the types stand for themselves
    groups = [name for name in (GROUPS if {pools.BLURRED, *GROUPS} & known else kinds) if name in known]
    stream = MIXED if MIXED in means else CLEAN
    rows = []
    for network in names_in(numbers):
        cells = [_accuracy(numbers, network, name) for name in means]
        cells += [_percent(numbers.get((network, stream, 0, measure))) for measure in summary.TITLES]
        cells += [_accuracy(numbers, network, name) for name in groups]
        rows.append((network, cells))
    notes = [(name, pools.MEANS[name]) for name in means]
    notes += [(title, _sentence(measure, stream)) for measure, title in summary.TITLES.items()]
    notes += [(name, pools.MEANS[name]) for name in groups if name in pools.MEANS]
    return Table(["network", *means, *summary.TITLES.values(), *groups], rows, notes)


def further_measures(ledger: Ledger, numbers: Numbers) -> Table:
    """Return the other measures: on the mixed stream, on clean images without one, and mCE over the 15 types."""
    networks, columns = names_in(numbers), []
    for measure in metrics.DEFINITIONS:
        views = [
            name
            for name in (MIXED, CLEAN, pools.ALL, pools.DEGRADED)
            if any((each, name, 0, measure) in numbers for each in networks)
        ]
        if views and measure not in IN_FIRST_TABLE:
            columns.append((measure, views[0]))
    rows = [
        (network, [_measure(measure, numbers.get((network, view, 0, measure))) for measure, view in columns])
        for network in networks
    ]
    titles = [metrics.definition(measure).title for measure, _view in columns]
    titles = [f"{title} (base {ledger.base})" if "mCE" in title else title for title in titles]
    accuracy = {
        view: value[0]
        for (network, view, severity, measure), value in numbers.items()
        if (network, severity, measure) == (ledger.base, 0, "accuracy")
    }
    apart = {measure: f" Left out here: {', '.join(kinds)}." for measure, kinds in summary.left_out(accuracy).items()}
    notes = [
        (title, _sentence(*column) + apart.get(column[0], "")) for title, column in zip(titles, columns, strict=True)
    ]
    return Table(["network", *titles], rows, notes)


def heat_map(ledger: Ledger, numbers: Numbers, network: str) -> HeatMap | None:
    """Return what a network gains by type and severity of the common corruptions; None for fewer than two types."""
    there = {(view.kind, view.severity) for view in ledger.views if view.kind in COMMON}
    kinds = [kind for kind in COMMON if any(kind == each for each, _severity in there)]
    severities = sorted({severity for _kind, severity in there})
    if len(kinds) < 2:
        return None
    group_of = {kind: group for group, members in GROUPS.items() for kind in members}
    rows = [
        (
            group_of[kind],
            kind.replace("_", " "),
            [_heat(numbers.get((network, kind, severity, "change"))) for severity in severities],
        )
        for kind in kinds
    ]
    return HeatMap(network, severities, rows)


def costs(ledger: Ledger) -> Table:
    """Return what each network costs: parameters, bytes beside the base, training passes, and latency where known."""
    timed = any(LATENCY in row.facts for row in ledger.networks.values())
    several = any(row.seed is not None for row in ledger.networks.values())
    columns = [
        "network",
        "method",
        *["seed"] * several,
        "parameters in memory",
        "stored beside the base",
        "training passes",
        *["milliseconds per image"] * timed,
    ]
    rows = []
    for name, row in ledger.networks.items():
        cells = [row.method or "-", *["-" if row.seed is None else str(row.seed)] * several, f"{row.parameters:,}"]
        cells.append("-" if name == ledger.base or row.bytes is None else size(row.bytes))
        cells.append("-" if row.passes is None else f"{row.passes:,.0f}")
        cells += [f"{row.facts[LATENCY]:.2f}" if LATENCY in row.facts else "-"] * timed
        rows.append((name, [Cell(text) for text in cells]))
    notes = [
        ("training passes", "Forward and backward passes of one image."),
        ("parameters in memory", "A network that routes holds the original network, too."),
    ]
    return Table(columns, rows, notes)


def of_frame(frame: pd.DataFrame) -> Table:
    """Return any table, whose first column names the rows, with two decimals.

    >>> of_frame(pd.DataFrame({"method": ["tent"], "resets": [3], "clean": [float("nan")]})).rows
    [('tent', [Cell(text='3', change='', interval='', sign=''), Cell(text='-', change='', interval='', sign='')])]
    """
    first, *others = (str(column) for column in frame.columns)

    def cell(value: object) -> Cell:
        if isinstance(value, bool):
            return Cell("yes" if value else "no")
        if isinstance(value, float):
            return Cell("-" if math.isnan(value) else f"{value:.2f}")
        return Cell(str(value))

    rows = [(str(row[first]), [cell(row[name]) for name in others]) for row in frame.to_dict("records")]
    return Table([first, *others], rows)


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return facts as pairs of text: nested values as JSON, and nothing of those that are missing."""
    return [
        (
            str(name).replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False),
        )
        for name, value in values.items()
        if value is not None and name != "notes"
    ]


def size(count: int) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> size(812), size(57_344), size(1_900_000)
    ('812 B', '57.3 kB', '1.90 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.2f} MB"


def signed(value: float, decimals: int = 2) -> str:
    """Return a number with its sign; zero has none.

    >>> signed(0.5), signed(-1.254), signed(-0.001)
    ('+0.50', '−1.25', '0.00')
    """
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def interval(estimate: Estimate, decimals: int = 2, *, sign: bool = False) -> str:
    """Return `low to high`, or nothing where a measure has no interval."""
    _middle, low, high = estimate
    if math.isnan(low) or math.isnan(high):
        return ""
    return (
        f"{signed(low, decimals)} to {signed(high, decimals)}" if sign else f"{low:.{decimals}f} to {high:.{decimals}f}"
    )


def sign_of(estimate: Estimate) -> str:
    """Return `gain` or `loss` where the interval of a change excludes zero, else nothing."""
    return "gain" if estimate[1] > 0 else "loss" if estimate[2] < 0 else ""


def _accuracy(numbers: Numbers, network: str, name: str) -> Cell:
    found, change = (numbers.get((network, name, 0, measure)) for measure in ("accuracy", "change"))
    if found is None:
        return Cell("-")
    if change is None:
        return Cell(f"{found[0]:.2f}", interval=interval(found))
    return Cell(f"{found[0]:.2f}", signed(change[0]), interval(change, sign=True), sign_of(change))


def _percent(found: Estimate | None) -> Cell:
    return Cell("-") if found is None else Cell(f"{found[0]:.2f}", interval=interval(found))


def _measure(measure: str, found: Estimate | None) -> Cell:
    if found is None or math.isnan(found[0]):
        return Cell("-")
    unit = metrics.definition(measure).unit
    if unit == "probability":
        return Cell("below 0.001" if found[0] < 0.001 else f"{found[0]:.3f}")
    decimals = 2 if unit in ("%", "points") else 3
    return Cell(f"{found[0]:.{decimals}f}", interval=interval(found, decimals))


def _heat(change: Estimate | None) -> HeatCell:
    if change is None:
        return HeatCell("", 0, "")
    sign = "gain" if change[0] > 0 else "loss" if change[0] < 0 else ""
    return HeatCell(signed(change[0], 1), round(min(1.0, abs(change[0]) / STRONGEST), 3), sign)


def _sentence(measure: str, view: str) -> str:
    return f"On {view}: {metrics.explained([measure])[0].partition(': ')[2]}"
