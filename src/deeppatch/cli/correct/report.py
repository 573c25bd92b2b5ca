"""The report of correct: the correction, its training history, and the record."""

from __future__ import annotations

from typing import Any

from deeppatch.cli.context import Context
from deeppatch.progress import info
from deeppatch.report.scores import training_table
from deeppatch.training import History


def report(context: Context, name: str, content: bytes, history: History, facts: dict[str, Any]) -> None:
    """Write the correction as file `name`, its training history, its metrics with `facts`, and the record."""
    path = context.stage.write(name, content)
    context.stage.write_table("history.csv", training_table(history))
    context.stage.write_json(
        "metrics.json",
        {
            "method": context.options.crt_method,
            **facts,
            "limit": context.options.limit,
            "train_images": len(context.data.train),
            "val_images": len(context.data.val),
            "epochs": len(history.loss),
            "best_epoch": history.best + 1,
            "val_append_accuracy_percent": 100 * history.accuracy[history.best],
        },
    )
    context.stage.finish()
    context.checkpoint().remove()
    best = 100 * history.accuracy[history.best]
    info(f"best epoch {history.best + 1}: {best:.2f} % on val append; {path}, {len(content)} bytes")
