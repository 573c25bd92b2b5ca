"""The report of relearn: a row for the run, the history, each class, and diagnostics of a simulated pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
from torch import nn

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.cli.annotate.inputs import partition_of
from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.hybrid.relearning import Relearned
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.semisupervised import EVAL_BATCH_SIZE
from deeppatch.metrics import paired_difference
from deeppatch.progress import info
from deeppatch.report import plots, repairs
from deeppatch.report.verdict import verdict
from deeppatch.training import predict

NETWORKS = ("raw", "finetuned", "last")
DIAGNOSTIC = "diagnostic_"


def report(context: Context, selection: Selection, model: nn.Module, relearned: Relearned) -> None:
    """Write weights, history.csv, metrics.json, row.csv and classes.csv of model, warm start and repaired network.

    Accuracy before repair is that of the warm start, the headline that of the last epoch; test images
    choose nothing.
    """
    test = views.clean(context.splits.test, EVAL_BATCH_SIZE)
    networks = [model, relearned.start, relearned.repaired]
    predicted = [predict(network, test, amp=context.options.amp, label="testing") for network in networks]
    predictions = dict(zip(NETWORKS, predicted, strict=True))
    table = repairs.epochs(relearned.history)
    classes = repairs.by_class(predictions, test.labels, context.source.classes)
    outcome = repairs.outcome(predictions["finetuned"], predictions["last"], test.labels)
    row = {
        **identity(context, selection),
        **selection.counts(context.options.use),
        "tau": selection.facts.get("tau"),
        "raw_percent": repairs.percent(predictions["raw"] == test.labels),
        **outcome,
        **repairs.least_entropy(table),
        "test_images": len(test.labels),
    }
    diagnosed = diagnostics(context)
    stage = context.stage
    stage.write("weights.safetensors", tensors_to_bytes(relearned.repaired.state_dict()))
    stage.write_table("history.csv", table)
    stage.write_table("classes.csv", classes)
    flat = {f"{DIAGNOSTIC}{name}": value for name, value in diagnosed.items()}
    stage.write_table("row.csv", pd.DataFrame([{**row, **flat}]))
    stage.write_json(
        "metrics.json",
        {
            **row,
            "test_percent_by_epoch": table["test_percent"].tolist(),
            "classes": json.loads(classes.to_json(orient="records")),  # null where a class has no image
            "diagnostics_not_available_in_the_field": diagnosed,
        },
    )
    print(classes.to_string(index=False, float_format="%.2f"))
    summarize(row, diagnosed)
    gained = paired_difference(*(predictions[name] == test.labels for name in ("last", "raw"))).scaled(100)
    info(str(verdict("relearned", gained, base="the raw network")))
    info(f"written to {stage.folder}")


def identity(context: Context, selection: Selection) -> dict[str, Any]:
    """Return what identifies a run: data, split, model, features, and the options that change its result."""
    options = context.options
    split: dict[str, Any] = {"split": "the data set's own", "split_digest": None}
    if options.bias:
        parts = partition_of(context)
        split = {"split": parts.order, "split_digest": parts.digest[:16]}
    encoder = selection.facts.get("encoder") or {}
    named = ("bias", "seed", "limit", "method", "use", "budget", "views", "epochs", "lr", "batch_size", "steps", "ramp")
    return {
        "dataset": context.source.name,
        "model": options.model,
        **split,
        **{name: getattr(options, name) for name in named},
        "features": selection.facts["features"],
        "encoder": encoder.get("encoder"),
        "encoder_epochs": encoder.get("epochs"),
    }


def diagnostics(context: Context) -> dict[str, Any]:
    """Return annotate's diagnostics of a simulated pool; nothing for a real pool."""
    path = context.folder("annotate") / "selection.json"
    found = context.stage.read_json(path, context.command("annotate"), diagnostics=(dict, type(None)))
    shares = {name: value for name, value in (found.get("diagnostics") or {}).items() if name.endswith("_percent")}
    return {name: value for name, value in shares.items() if isinstance(value, (int, float, type(None)))}


def summarize(row: dict[str, Any], diagnosed: dict[str, Any]) -> None:
    """Log the headline, and whether propagated labels were better than the model's own predictions."""
    propagated, own = (
        diagnosed.get(name)
        for name in ("propagated_labels_correct_percent", "own_predictions_correct_on_members_percent")
    )
    if propagated is not None and own is not None and row["labelled_images"] > row["labels_bought"]:
        judgement = "better" if propagated > own else "NO BETTER"
        info(
            f"propagated labels: {propagated:.2f} % correct, {judgement} than the model's own {own:.2f} % on the same "
            "images (diagnostic, not available in the field)"
        )
    info(
        f"test accuracy: {row['raw_percent']:.2f} % raw, {row['finetuned_percent']:.2f} % fine-tuned, "
        f"{row['last_percent']:.2f} % after the last epoch ({row['gained_points']:+.2f} points for "
        f"{row['labels_bought']} labels; {row['fixed']} fixed, {row['broken']} broken)"
    )


def compare(context: Context, finished_runs: Callable[[Context], pd.DataFrame]) -> None:
    """Write a table of all finished runs, a table by kind of run, and a plot of gains against labels."""
    options, rows = context.options, finished_runs(context)
    table = repairs.over_seeds(rows)
    stage = context.stage
    stage.write_table("runs.csv", rows)
    stage.write_table("comparison.csv", table)
    stage.write_json("comparison.json", json.loads(table.to_json(orient="records")))  # missing numbers as null
    title = f"{options.model} on {rows['dataset'].iloc[0]}" + (f", bias {options.bias}" if options.bias else "")
    title += f"; {repairs.seeds_of(table)}"
    stage.write("gained.png", plots.gain_against_labels(repairs.curves(table), title))
    stage.finish()
    print(repairs.format_comparison(table))
    info(f"{len(rows)} runs; written to {stage.folder}")
