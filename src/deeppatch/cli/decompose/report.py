"""The reports of decompose's actions: tables, JSON, plots, and the weights of a fine-tuned network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.cli.context import Context
from deeppatch.decomposition.essential import Essential
from deeppatch.decomposition.tune import FineTuned
from deeppatch.progress import info
from deeppatch.report import plots
from deeppatch.report.scores import training_table


def write_validation(
    context: Context, table: pd.DataFrame, images: int, times: Mapping[str, float], batch: int
) -> None:
    """Write accuracy on test, multiply-adds and time of the whole layer and of each decomposed one."""
    stage = context.stage
    stage.write_table("metrics.csv", table)
    stage.write_json(
        "metrics.json",
        {"test_images": images, "limit": context.options.limit, "heads": table.to_dict("records")},
    )
    stage.write_json("timing.json", {"batch": batch, "microseconds_a_batch": dict(times)})
    stage.finish()
    print(table.assign(microseconds_a_batch=list(times.values())).to_string(index=False, float_format="%.2f"))
    info(f"{images} test images, times for a batch of {batch}; written to {stage.folder}")


def write_essential(context: Context, counts: Mapping[str, Essential]) -> None:
    """Write the number of correct images of each class with noise at its features, and at all others."""
    options, names, stage = context.options, context.source.classes, context.stage
    tables = [found.by_class(names) for found in counts.values()]
    for name, table in zip(counts, tables, strict=True):
        table.insert(0, "set", name)
    frame = pd.concat(tables, ignore_index=True)
    stage.write_table("essential.csv", frame)
    totals = {name: found.percentages() for name, found in counts.items()}
    stage.write_json(
        "essential.json",
        {
            "draws": options.draws,
            "limit": options.limit,
            "sets": totals,
            "by_class": {str(name): rows.to_dict("records") for name, rows in frame.groupby("set")},
        },
    )
    images = int(tables[0]["images"].sum())
    noise = f"noise: mean ± deviation of {options.draws} draws" if options.draws > 1 else "noise: one draw"
    title = f"{options.model} on {context.source.name}, {images} test images, {noise}"
    stage.write("essential.png", plots.essential(frame, title))
    stage.finish()
    print(pd.DataFrame(totals).T.to_string(float_format="%.2f"))
    info(f"accuracy of all classes in percent; by class and draw in {stage.folder}")


def write_mutual_information(context: Context, rows: list[dict[str, Any]]) -> None:
    """Write the mean mutual information of all ordered pairs of classes, for every set of features."""
    stage = context.stage
    stage.write_json("mutual-info.json", {"classes": len(context.source.classes), "sets": rows})
    frame = pd.DataFrame(rows).sort_values("k", kind="stable")
    stage.write("mutual-info.csv", frame.to_csv(index=False).encode())
    stage.finish()
    print(frame.to_string(index=False, float_format="%.6f"))
    info(f"lower values: classes share less information; written to {stage.folder}")


def write_finetuned(context: Context, tuned: FineTuned, features: str, base: str) -> None:
    """Write the weights of the best epoch on val, and the accuracy on test after every epoch."""
    history, stage = tuned.history, context.stage
    meta = {"base": base, "features": features}
    stage.write("weights.safetensors", tensors_to_bytes(tuned.model.state_dict(), meta))
    table = training_table(history)
    table["test_accuracy_percent"] = [100 * value for value in history.watched]
    stage.write_table("history.csv", table)
    before, after = 100 * tuned.before, 100 * history.watched[history.best]
    stage.write_json(
        "metrics.json",
        {
            "features": features,
            "head_only": context.options.head_only,
            "limit": context.options.limit,
            "train_images": len(context.data.train),
            "test_images": len(context.data.test),
            "test_accuracy_percent": {"before": before, "best_epoch": after},
            "best_epoch": history.best + 1,
        },
    )
    stage.finish()
    print(table.to_string(index=False, float_format="%.4g"))
    info(f"test accuracy {before:.2f} % before, {after:.2f} % after the best epoch on val; written to {stage.folder}")


def write_sweep(context: Context, table: pd.DataFrame, whole: float, images: int) -> None:
    """Write accuracy on test against k: decomposed, and its head fine-tuned, in percent as `whole` is."""
    options, stage = context.options, context.stage
    stage.write_table("sweep.csv", table)
    stage.write_json(
        "sweep.json",
        {
            "whole_layer_percent": whole,
            "test_images": images,
            "limit": options.limit,
            "epochs": options.max_epoch,
            "rows": table.to_dict("records"),
        },
    )
    title = f"{options.model} on {context.source.name}, {images} test images, heads tuned {options.max_epoch} epochs"
    stage.write("sweep.png", plots.accuracy_against_k(table, whole, title))
    stage.finish()
    print(table.to_string(index=False, float_format="%.2f"))
    info(f"whole layer: {whole:.2f} %; written to {stage.folder}")
