"""relearn --compare: all runs of a model side by side, means and spreads over seeds."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from deeppatch.artifacts import DAMAGE, RECORD
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.naming import model_folder
from deeppatch.cli.options import DEFAULT_SEED
from deeppatch.errors import UserError
from deeppatch.progress import info
from deeppatch.report import plots, repairs


def compare(options: argparse.Namespace) -> None:
    """Write every finished run's row, one row for each kind of run, and what each gained against labels, as a plot."""
    context = open_stage(argparse.Namespace(**{**vars(options), "seed": DEFAULT_SEED}), "relearn")
    rows = found(context)
    table = repairs.over_seeds(rows)
    stage = context.stage
    stage.write_table("runs.csv", rows)
    stage.write_table("comparison.csv", table)
    stage.write_json("comparison.json", json.loads(table.to_json(orient="records")))  # missing numbers as null
    title = f"{options.model} on {rows['dataset'].iloc[0]}" + (f", bias {options.bias}" if options.bias else "")
    title += "; mean and deviation over seeds"
    stage.write("gained.png", plots.gained(curves(table), title))
    stage.finish()
    print(repairs.show(table))
    info(f"{len(rows)} runs; written to {stage.folder}")


def curves(table: pd.DataFrame) -> dict[str, list[tuple[int, float, float]]]:
    """Return (labels, mean gain in points, deviation) of each kind of run, by name; most is gained first."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for kind in table.to_dict("records"):
        point = (round(kind["labels_bought"]), kind["gained_points"], kind["gained_points_deviation"])
        points.setdefault(repairs.name_of(kind, table), []).append(point)
    return points


def found(context: Context) -> pd.DataFrame:
    """Return the rows of all finished runs with this bias and limit, each with the wall time of its record.

    UserError where there is none.
    """
    options = context.options
    rows = []
    for path in sorted(model_folder(options).glob("relearn-*/row.csv")):
        record = recorded(path.parent / RECORD)
        if record and all(record["settings"][name] == getattr(options, name) for name in ("bias", "limit")):
            (row,) = pd.read_csv(io.BytesIO(context.stage.read(path, record["command"]))).to_dict("records")
            rows.append({**row, "wall_seconds": record["wall_seconds"]})
    if not rows:
        command = context.command("relearn")
        raise UserError(f"nothing to compare under {model_folder(options)}; make a run with: {command}")
    return pd.DataFrame(rows)


def recorded(path: Path) -> dict[str, Any] | None:
    """Return a run's record, or None where there is none that can be read: the run has not finished."""
    with contextlib.suppress(*DAMAGE):
        record = json.loads(path.read_bytes())
        return {
            "settings": dict(record["settings"]),
            "command": str(record["command"]),
            "wall_seconds": float(record["wall_seconds"]),
        }
    return None
