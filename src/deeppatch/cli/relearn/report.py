"""The report of relearn: a row for the run, the history, each class, and diagnostics of a simulated pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.cli.annotate.inputs import partition_of
from deeppatch.cli.context import Context
from deeppatch.cli.relearn.safe_report import counts_of_safe, name_of_result, steps_of_safe, what_helped, write_prior
from deeppatch.data import views
from deeppatch.hybrid.prior import PriorEstimate
from deeppatch.hybrid.relearning import Relearned
from deeppatch.hybrid.selection import Selection, supervised
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

    Of the safe recipe also prior.csv and what each of its steps has gained.

    Accuracy before repair is that of the warm start, the headline that of the last epoch, or with the safe recipe of
    the network that the floor has taken; test images choose nothing.
    """
    use, networks = context.options.use, [model, relearned.start, relearned.repaired]
    predictions = {name: tested(context, network) for name, network in zip(NETWORKS, networks, strict=True)}
    table = repairs.epochs(relearned.history)
    steps = steps_of_safe(context, relearned, predictions) if relearned.safe else {}
    row = {
        **identity(context, selection),
        **(counts_of_safe(selection, relearned.safe, use) if relearned.safe else selection.counts(use)),
        "tau": selection.facts.get("tau"),
        **measured(context, predictions),
        **repairs.least_entropy(table),
        **steps,
        "test_images": len(context.splits.test),
    }
    diagnosed = {**diagnostics(context), **repairs.diagnosed_by_epoch(table)}
    context.stage.write_table("history.csv", table)
    write(context, row, predictions, relearned.repaired, diagnosed, table["test_percent"].tolist())
    if relearned.safe and relearned.safe.prior:
        write_prior(context, relearned.safe.prior)
    summarize(row, diagnosed)
    info(what_helped(row, use))
    judge(context, predictions, "relearned")


def report_prior(context: Context, model: nn.Module, corrected: nn.Module) -> None:
    """Write weights, metrics.json, row.csv, classes.csv and prior.csv of a network and its corrected copy."""
    estimate: PriorEstimate = corrected.prior  # type: ignore[assignment]
    raw = tested(context, model)
    predictions = dict(zip(NETWORKS, (raw, raw, tested(context, corrected)), strict=True))
    nothing = torch.empty(0, dtype=torch.long)
    selection = supervised(nothing, nothing)
    row = {
        **identity(context, selection),
        **selection.counts(),
        "tau": None,
        **measured(context, predictions),
        "prior_decision": estimate.decision,
        "test_images": len(context.splits.test),
    }
    row["prior_percent"] = row["last_percent"]
    del predictions["finetuned"]  # nothing was
    write(context, row, predictions, corrected, {}, [])
    write_prior(context, estimate)
    info(f"test accuracy: {row['raw_percent']:.2f} %, {row['last_percent']:.2f} % with the correction of the prior")
    judge(context, predictions, "corrected")


def tested(context: Context, network: nn.Module) -> Tensor:
    """Return the classes (M,) that a network predicts for the test images."""
    view = views.clean(context.splits.test, EVAL_BATCH_SIZE)
    return predict(network, view, amp=context.options.amp, label="testing")


def measured(context: Context, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """Return the accuracies of all NETWORKS in percent, and what has changed from the second to the third."""
    labels = context.splits.test.labels
    raw = repairs.percent(predictions["raw"] == labels)
    return {"raw_percent": raw, **repairs.outcome(predictions["finetuned"], predictions["last"], labels)}


def write(
    context: Context,
    row: dict[str, Any],
    predictions: dict[str, Tensor],
    repaired: nn.Module,
    diagnosed: dict[str, Any],
    test_percent_by_epoch: list[float],
) -> None:
    """Write the weights, and the row as CSV and JSON with each class and the diagnostics."""
    stage, labels = context.stage, context.splits.test.labels
    classes = repairs.by_class(predictions, labels, context.source.classes)
    stage.write("weights.safetensors", tensors_to_bytes(repaired.state_dict()))
    stage.write_table("classes.csv", classes)
    flat = {f"{DIAGNOSTIC}{name}": value for name, value in diagnosed.items()}
    stage.write_table("row.csv", pd.DataFrame([{**row, **flat}]))
    stage.write_json(
        "metrics.json",
        {
            **row,
            "test_percent_by_epoch": test_percent_by_epoch,
            "classes": json.loads(classes.to_json(orient="records")),  # null where a class has no image
            "diagnostics_not_available_in_the_field": diagnosed,
        },
    )
    print(classes.to_string(index=False, float_format="%.2f"))


def judge(context: Context, predictions: dict[str, Tensor], name: str) -> None:
    """Log the verdict on the repaired network, and where everything is."""
    labels = context.splits.test.labels
    gained = paired_difference(*(predictions[each] == labels for each in ("last", "raw"))).scaled(100)
    info(str(verdict(name, gained, base="the raw network")))
    info(f"written to {context.stage.folder}")


def identity(context: Context, selection: Selection) -> dict[str, Any]:
    """Return what identifies a run: data, split, model, features, and the options that change its result."""
    options = context.options
    split: dict[str, Any] = {"split": "the data set's own", "split_digest": None}
    if options.bias:
        parts = partition_of(context)
        split = {"split": parts.order, "split_digest": parts.digest[:16]}
    encoder = selection.facts.get("encoder") or {}
    named = (
        "bias", "seed", "limit", "method", "use", "budget", "views", "epochs", "lr", "batch_size", "max_batches",
        "ramp", "weight_decay", "pseudo_weight", "pool_weights", "pseudo_labels", "scope", "no_prior",
        "cluster_size", "coreset_start", "rounds", "step",
    )  # fmt: skip
    return {
        "dataset": context.source.name,
        "model": options.model,
        **split,
        **{name: getattr(options, name) for name in named},
        "tau_setting": str(options.tau),
        "features": selection.facts.get("features"),
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
    result = f"{row['last_percent']:.2f} % after the last epoch"
    if "floor_alpha" in row:
        after = f"{row['trained_percent']:.2f} % after the last epoch"
        result = f"{after}; the floor takes {name_of_result(row)}: {row['last_percent']:.2f} %"
    info(
        f"test accuracy: {row['raw_percent']:.2f} % raw, {row['finetuned_percent']:.2f} % fine-tuned, {result} "
        f"({row['gained_points']:+.2f} points over the fine-tuned network for {row['labels_bought']} labels; "
        f"{row['fixed']} fixed, {row['broken']} broken)"
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
