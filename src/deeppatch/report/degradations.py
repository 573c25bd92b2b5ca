"""Accuracies by type and severity of degradations: a long table, means of types and groups, and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeppatch.data.corruption_names import BENCHMARK, GROUPS
from deeppatch.metrics import Rows
from deeppatch.report import plots, scores

CLEAN, MEAN, HELD_OUT = "clean", "mean", "held out"
MARK = " *"  # of what was held out
NOTE = "* held out: not used for ranking, training and calibration"
_GROUP_OF = {name: group for group, members in GROUPS.items() for name in members}


def type_and_severity(level: str) -> tuple[str, str]:
    """Return type and severity of a level's name; the severity is empty where it has none.

    >>> type_and_severity("jpeg_compression-3"), type_and_severity("s=0.5"), type_and_severity("rain")
    (('jpeg_compression', '3'), ('gaussion', 's=0.5'), ('rain', ''))
    """
    if level.startswith("s="):
        return "gaussion", level
    name, dash, severity = level.rpartition("-")
    if dash and (name in _GROUP_OF or name in ("spatial", "gaussion")):
        return name, severity
    return level, ""


def long_table(
    correct: Mapping[str, Rows], levels: Sequence[str], unseen: Mapping[str, Rows], held_out: Sequence[str] = ()
) -> pd.DataFrame:
    """Return one row for each network and level: images, errors, and the error in percent.

    Args:
        correct: The correct predictions of each network, clean first, then those of each level.
        levels: The names of the levels.
        unseen: The correct predictions at the held-out levels, clean first.
        held_out: The names of these levels.
    """
    rows = []
    for network, own in correct.items():
        named = [(CLEAN, False, own[0]), *((name, False, row) for name, row in zip(levels, own[1:], strict=True))]
        if held_out:
            named += [(name, True, row) for name, row in zip(held_out, unseen[network][1:], strict=True)]
        for level, apart, row in named:
            name, severity = (CLEAN, "") if level == CLEAN else type_and_severity(level)
            errors = len(row) - int(row.sum())
            rows.append(
                {
                    "network": network,
                    "corruption": name,
                    "group": _GROUP_OF.get(name, name),
                    "severity": severity,
                    "held_out": apart,
                    "images": len(row),
                    "errors": errors,
                    "error_percent": 100 * errors / len(row),
                }
            )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, reference: str | None = None) -> dict[str, Any]:
    """Return the errors of a long table for each network, nested, in percent.

    Each network has its error on clean images, by type and severity, the mean of each type, of each group and of all
    levels that were not held out, `held_out` for the mean of those that were, and `benchmark` for the mean of the 15
    published types where all are there. `relative_to` is the error of each type, summed over severities, in percent of
    that of the network `reference`.
    """
    found: dict[str, Any] = {}
    for network, own in table.groupby("network", sort=False):
        degraded = own[own.corruption != CLEAN]
        types = {
            name: {
                "held_out": bool(rows.held_out.iloc[0]),
                "severities": dict(zip(rows.severity, rows.error_percent, strict=True)),
                "mean": float(rows.error_percent.mean()),
            }
            for name, rows in degraded.groupby("corruption", sort=False)
        }
        entry: dict[str, Any] = {
            CLEAN: float(own.error_percent[own.corruption == CLEAN].iloc[0]),
            "types": types,
            "groups": {
                group: {"mean": float(rows.error_percent.mean()), "held_out": bool(rows.held_out.all())}
                for group, rows in degraded.groupby("group", sort=False)
            },
            MEAN: _mean(degraded[~degraded.held_out]),
            "held_out": _mean(degraded[degraded.held_out]),
            "benchmark": _mean(degraded[degraded.corruption.isin(BENCHMARK)]) if set(BENCHMARK) <= set(types) else None,
        }
        found[str(network)] = entry
    for entry in found.values() if reference else ():
        base = found[str(reference)]["types"]
        entry[f"relative_to_{reference}"] = {
            name: 100 * each["mean"] / base[name]["mean"] if base[name]["mean"] else None
            for name, each in entry["types"].items()
        }
    return found


def by_type(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies in percent: a row for clean, each type, group and mean, a column for each network."""
    columns: dict[str, dict[str, float]] = {}
    for network, entry in summary(table).items():
        errors = {CLEAN: entry[CLEAN]}
        errors |= {_marked(name, each["held_out"]): each["mean"] for name, each in entry["types"].items()}
        if len(entry["types"]) > len(entry["groups"]):
            errors |= {
                _marked(f"mean of {group}", each["held_out"]): each["mean"]
                for group, each in entry["groups"].items()
                if group in GROUPS
            }
        errors |= {MEAN: entry[MEAN]} | ({} if entry["held_out"] is None else {HELD_OUT + MARK: entry["held_out"]})
        columns[network] = {name: 100 - error for name, error in errors.items()}
    return pd.DataFrame(columns).rename_axis("degradation").reset_index()


def of_levels_by_type(values: Mapping[str, Mapping[str, float]], held_out: Sequence[str] = ()) -> pd.DataFrame:
    """Return the means by type of values by level, in columns of the names of `values`; other keys stay rows."""
    columns = {}
    for column, by_level in values.items():
        grouped: dict[str, list[float]] = {}
        for level, value in by_level.items():
            name = _marked(type_and_severity(level)[0], level in held_out)
            grouped.setdefault(name, []).append(value)
        columns[column] = {name: sum(each) / len(each) for name, each in grouped.items()}
    return pd.DataFrame(columns).rename_axis("degradation").reset_index()


def accuracy_maps(table: pd.DataFrame, title: str) -> bytes:
    """Plot accuracy in percent by type and severity, one map for each network, on one scale from 0 to 100."""
    return _maps(_grids(table), title, "accuracy (%)", {"cmap": "viridis", "vmin": 0, "vmax": 100}, "{:.0f}")


def difference_maps(table: pd.DataFrame, reference: str, title: str) -> bytes:
    """Plot the accuracy that each network has gained over `reference`, in points, by type and severity."""
    grids = _grids(table)
    gained = {name: grid - grids[reference] for name, grid in grids.items() if name != reference}
    most = max([1.0, *(float(grid.abs().max().max()) for grid in gained.values())])
    return _maps(
        gained, title, f"gained over {reference} (points)", {"cmap": "RdBu", "vmin": -most, "vmax": most}, "{:+.0f}"
    )


def format_by_type(frame: pd.DataFrame) -> str:
    """Format a table of types for the terminal, with a line on what the mark says where it is used."""
    text = scores.format_table(frame)
    return f"{text}\n{NOTE}" if frame["degradation"].str.endswith(MARK).any() else text


def _grids(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return accuracies in percent for each network: a row for each type, a column for each severity."""
    degraded = table[table.corruption != CLEAN].copy()
    degraded["row"] = [_marked(name, apart) for name, apart in zip(degraded.corruption, degraded.held_out, strict=True)]
    degraded["accuracy"] = 100 - degraded.error_percent
    found = {}
    for network, own in degraded.groupby("network", sort=False):
        grid = own.pivot_table(index="row", columns="severity", values="accuracy", sort=False)
        order = sorted(grid.columns, key=lambda name: (name.startswith("s="), name))
        found[str(network)] = grid.loc[list(dict.fromkeys(own["row"])), order]
    return found


def _maps(grids: Mapping[str, pd.DataFrame], title: str, measure: str, scale: dict[str, Any], form: str) -> bytes:
    first = next(iter(grids.values()))
    across = 2 if len(grids) == 4 else min(3, len(grids))
    down = -(-len(grids) // across)
    width = 0.55 * len(first.columns) + 0.6
    size = (max(6.5, across * width + 2.6), down * (0.26 * len(first) + 0.9) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    image = None
    for axes, (network, grid) in zip(panels, grids.items(), strict=False):
        image = axes.imshow(grid.to_numpy(), aspect="auto", interpolation="nearest", **scale)
        _number(axes, grid, scale, form)
        axes.set_title(network, fontsize=9)
        axes.set_xticks(range(len(grid.columns)), [name or "-" for name in grid.columns], fontsize=8)
        axes.set_yticks(range(len(grid)), list(grid.index), fontsize=8)
        axes.set_xlabel("severity", fontsize=8)
        if any(name.endswith(MARK) for name in grid.index):
            title = title if NOTE in title else f"{title}\n{NOTE}"
    for axes in panels[len(grids) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(panels), label=measure)  # type: ignore[arg-type]
    plots.headed(figure, title)
    return plots.png(figure)


def _number(axes: Axes, grid: pd.DataFrame, scale: dict[str, Any], form: str) -> None:
    """Write the number of each cell, white on dark: low values of viridis, and both ends of a diverging scale."""
    middle, reach = (scale["vmin"] + scale["vmax"]) / 2, (scale["vmax"] - scale["vmin"]) / 2
    for row, line in enumerate(grid.to_numpy()):
        for column, value in enumerate(line):
            if value == value:  # types with fewer severities leave cells empty
                place = (value - middle) / reach
                dark = place < 0.1 if scale["vmin"] == 0 else abs(place) > 0.6
                axes.text(
                    column,
                    row,
                    form.format(value),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                )


def _mean(rows: pd.DataFrame) -> float | None:
    return float(rows.error_percent.mean()) if len(rows) else None


def _marked(name: str, held_out: bool) -> str:
    return name + MARK if held_out else name
