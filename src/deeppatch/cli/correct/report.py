"""The report of correct: the correction, its training history, its tables and documents, and the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.data.epochs import Passes
from deeppatch.progress import info
from deeppatch.report.scores import training_table
from deeppatch.training import History


@dataclass(frozen=True)
class Correction:
    """What a correction leaves.

    Args:
        file: The name of its file.
        content: The content of the file.
        passes: What it cost.
        history: Loss and accuracy of each epoch, where it was trained.
        stored: The number of bytes that must be stored beside the base; None for those of the file.
        facts: Further results, for metrics.json.
        tables: Further tables by the name of their CSV file.
        documents: Further JSON values by the name of their file, such as which images were selected.
    """

    file: str
    content: bytes
    passes: Passes
    history: History | None = None
    stored: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)


def report(context: Context, correction: Correction) -> None:
    """Write the correction, its training history, tables and documents, metrics.json and the record."""
    path = context.stage.write(correction.file, correction.content)
    history = correction.history
    for name, table in correction.tables.items():
        context.stage.write_table(name, table)
    for name, document in correction.documents.items():
        context.stage.write_json(name, document)
    if history is not None:
        context.stage.write_table("history.csv", training_table(history))
    context.stage.write_json(
        "metrics.json",
        {
            "method": context.options.crt_method,
            **correction.facts,
            "limit": context.options.limit,
            "train_images": len(context.data.train),
            "val_images": len(context.data.val),
            **({} if history is None else _of_training(history)),
            "passes": asdict(correction.passes),
            "stored_bytes": len(correction.content) if correction.stored is None else correction.stored,
        },
    )
    context.stage.finish()
    context.checkpoint().remove()
    best = ""
    if history is not None:
        best = f"best epoch {history.best + 1}: {100 * history.accuracy[history.best]:.2f} % on val append; "
    info(f"{best}{path}, {len(correction.content)} bytes")


def _of_training(history: History) -> dict[str, Any]:
    return {
        "epochs": len(history.loss),
        "best_epoch": history.best + 1,
        "val_append_accuracy_percent": 100 * history.accuracy[history.best],
    }
