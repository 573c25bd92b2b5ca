"""The chains of a study: stages one after another, such as annotate and relearn, for each model, data set and seed.

A chain has no degradations and no ledger: what its last stage leaves as a table is collected as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import source  # noqa: F401

from deeppatch.cli.options import RepairOptions
from deeppatch.errors import UserError

STAGES = ("annotate", "relearn", "modularize", "compose")
OTHERS = ("levels", "differences", "adaptation")  # tables of matrices
# the table that a stage leaves, for those that may end a chain
TABLES = {"relearn": "row.csv", "modularize": "modules.csv", "compose": "table.csv"}


def check(name: str, chain: Mapping[str, Any]) -> None:
    """Raise UserError where a chain ends with a stage that leaves no table, or its table has the name of another."""
    if name in OTHERS:
        raise UserError(f"chains: a study has another table of the name {name}; choose another")
    if (last := chain["stages"][-1]) not in TABLES:
        raise UserError(f"chain {name} cannot end with {last}; end it with {', '.join(TABLES)}")


def settings(chain: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str | None]]:
    """Yield for each model, data set, seed and method what tables say of it, options of the model, and the method."""
    models = chain["models"]
    for model, data, seed, method in itertools.product(
        models, chain["data"], chain.get("seeds") or [RepairOptions.seed], chain.get("methods") or [None]
    ):
        about = {"model": model, "data": data, "seed": seed, **({"method": method} if method else {})}
        yield about, dict(models[model] or {}) if isinstance(models, Mapping) else {}, method


def table(folder: Path, about: Mapping[str, Any], stage: str) -> pd.DataFrame:
    """Return the table that the last stage of a chain has left, behind what it was run for."""
    found = pd.read_csv(folder / TABLES[stage])
    known = {key: value for key, value in about.items() if key not in found.columns}
    return pd.concat([pd.DataFrame([known] * len(found), index=found.index), found], axis=1)
