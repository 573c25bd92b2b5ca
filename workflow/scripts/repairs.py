"""What a study says of repairs against blur: accuracy at each level, the rates of change, and a picture of these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import source  # noqa: F401
from matrix import BASE, FINETUNE, SWITCHED

from deeppatch.data.corruptions import SIGMAS
from deeppatch.ledger.pools import BLURRED
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.ledger.streams import GAUSSION
from deeppatch.ledger.summary import TITLES
from deeppatch.report.repair_figure import LEVEL, draw_repair

CELL = ("model", "data", "degradation")  # what is measured together, for each seed


def levels(tidy: pd.DataFrame, names: Mapping[str, str], about: Mapping[str, object]) -> pd.DataFrame:
    """Return accuracy in percent, clean, at each level of blur, in the mean over these, and on the mixed stream.

    The last columns are the shares of the mixed stream that a network repairs and newly gets wrong.

    Args:
        tidy: The table of a ledger.
        names: What the study calls the networks of the ledger.
        about: Further columns, such as model, data, degradation and seed.

    Returns:
        A row for each network; none where the ledger has no blur.
    """
    if BLURRED not in set(tidy["view"]):
        return pd.DataFrame()
    found = tidy.set_index(["network", "measure", "view", "severity"])["estimate"]
    columns = {CLEAN: ("accuracy", CLEAN, 0)}
    columns |= {f"{LEVEL}{sigma:g}": ("accuracy", GAUSSION, level) for level, sigma in enumerate(SIGMAS, 1)}
    columns |= {view: ("accuracy", view, 0) for view in (BLURRED, MIXED)}
    columns |= {title: (measure, MIXED, 0) for measure, title in TITLES.items()}
    rows = []
    for network, name in names.items():
        values = {column: found.get((network, *place)) for column, place in columns.items()}
        numbers = {column: None if value is None else round(float(value), 2) for column, value in values.items()}
        rows.append({"network": name, **about, **numbers})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write a PNG of the first model: the network before its repair, fine-tuned, and its first patch, also switched."""
    first = table.iloc[0][list(CELL)]
    own = table[(table[list(CELL)] == first).all(axis=1)]
    switched = [name for name in own["network"].unique() if name.endswith(SWITCHED)]
    shown = {BASE: "pretrained", FINETUNE: "finetuned"}
    if switched:
        shown |= {switched[0]: "switched", switched[0].removesuffix(SWITCHED): "patched"}
    own = own[own["network"].isin(shown)].replace({"network": shown})
    draw_repair(own, path, f"{first['model']} on {first['data']}")
