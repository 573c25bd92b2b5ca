"""The report of evaluate: accuracies, changes and routing as JSON, CSV, plot and printed tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deeppatch import metrics
from deeppatch.cli.context import Context
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.patching.comparison import Comparison
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info
from deeppatch.report import plots, scores

MEAN = "blurred"


def show_calibration(facts: dict[str, Any]) -> None:
    """Log the bound on the loss of clean accuracy."""
    if "clean_drop_bound" not in facts:
        return
    bound, wanted = 100 * facts["clean_drop_bound"], 100 * facts["max_clean_drop"]
    seen = f"{facts['clean_losses']} of {facts['clean_images']} clean val images lost"
    info(f"router: {seen}; clean drop at most {bound:.2f} points (95 %), wanted {wanted:g}")
    if not facts["bound_attained"]:
        least = 100 * facts["smallest_bound"]
        info(f"router: with so few images the bound is at least {least:.2f} points, so no loss on val was allowed")


def write_report(context: Context, comparison: Comparison, switched: SwitchedModel) -> None:
    """Write the router, metrics.json, metrics.csv, router.csv, accuracy.png and the record; print the tables."""
    options, stage = context.options, context.stage
    accuracy, changed = comparison.accuracies(MEAN), comparison.changes(MEAN)
    routing_metrics, images = comparison.router_metrics(MEAN), comparison.images
    stage.write_json(
        "metrics.json",
        {
            "dataset": context.source.name,
            "model": options.model,
            "test_images": images,
            "limit": options.limit,
            "switch": options.switch,
            "router": options.router,
            "accuracy_percent": accuracy,
            "change_against_pretrained_percent": changed,
            "difference_points": {
                pair: {view: asdict(each) for view, each in views.items()}
                for pair, views in comparison.differences(MEAN).items()
            },
            "routing": routing_metrics,
            "calibration": switched.calibration,
        },
    )

    table = scores.table(accuracy)
    stage.write_table("metrics.csv", scores.with_changes(table, changed))
    router_table = scores.routing_table(routing_metrics)
    stage.write_table("router.csv", router_table)
    views = metrics.view_names(comparison.level_names)
    curves = {name: [row[view] for view in views] for name, row in accuracy.items()}
    title = f"{options.model} on {context.source.name}, {images} test images"
    stage.write("accuracy.png", _plot(context, curves, title))
    assert switched.router is not None
    stage.write("router.safetensors", switched.router.to_bytes())
    stage.finish()

    print(scores.format_table(table))
    print("\nrepaired (+, wrong to correct) and broken (-, correct to wrong) against pretrained, percent of all images")
    print(scores.format_changes(changed))
    print(f"\nrouter: {options.router}, one decision a {options.switch}")
    print(scores.format_table(router_table))
    info(f"accuracy in percent on {images} test images; written to {stage.folder}")


def _plot(context: Context, curves: dict[str, list[float]], title: str) -> bytes:
    if isinstance(context.corruption, GaussianBlur):
        return plots.accuracy_against_blur(curves, context.corruption.sigmas, title)
    return plots.accuracy_by_level(curves, context.corruption.level_names, title)
