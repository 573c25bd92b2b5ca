"""The report of evaluate: accuracies, changes and routing as JSON, CSV, plot and printed tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from deeppatch import metrics
from deeppatch.cli.context import Context
from deeppatch.cli.degradation_report import write_degradations
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.patching.comparison import PRETRAINED, Comparison
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info
from deeppatch.report import degradations, plots, scores

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


def write_report(
    context: Context, comparison: Comparison, switched: SwitchedModel, unseen: Comparison | None = None
) -> None:
    """Write the router, metrics.json, metrics.csv, router.csv, accuracy.png and the record; print the tables.

    `unseen` is the comparison on held-out degradations, which are reported apart.
    """
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
            **_held_out(unseen),
        },
    )

    table = scores.table(accuracy)
    stage.write_table("metrics.csv", scores.with_changes(table, changed))
    router_table = scores.routing_table(routing_metrics)
    stage.write_table("router.csv", router_table)
    by_type = write_degradations(
        context,
        {name: each.by_level for name, each in comparison.correct.items()},
        None if unseen is None else {name: each.by_level for name, each in unseen.correct.items()},
        PRETRAINED,
    )
    views = metrics.view_names(comparison.level_names)
    curves = {name: [row[view] for view in views] for name, row in accuracy.items()}
    title = f"{options.model} on {context.source.name}, {images} test images"
    stage.write("accuracy.png", _plot(context, curves, title))
    assert switched.router is not None
    stage.write("router.safetensors", switched.router.to_bytes())
    stage.finish()

    print(scores.format_table(table) if by_type is None else by_type)
    print("\nrepaired (+, wrong to correct) and broken (-, correct to wrong) against pretrained, percent of all images")
    print(scores.format_changes(changed) if by_type is None else _changes_by_type(comparison, unseen))
    print(f"\nrouter: {options.router}, one decision a {options.switch}")
    print(scores.format_table(router_table) if by_type is None else _routing_by_type(comparison, unseen))
    info(f"accuracy in percent on {images} test images; written to {stage.folder}")


def _held_out(unseen: Comparison | None) -> dict[str, Any]:
    """Return what metrics.json says of held-out degradations; nothing where there are none."""
    if unseen is None:
        return {}
    found = {
        "levels": list(unseen.level_names),
        "accuracy_percent": unseen.accuracies(),
        "change_against_pretrained_percent": unseen.changes(),
        "difference_points": {
            pair: {view: asdict(each) for view, each in views.items()} for pair, views in unseen.differences().items()
        },
        "routing": unseen.router_metrics(),
    }
    return {"held_out": found}


def _changes_by_type(comparison: Comparison, unseen: Comparison | None) -> str:
    """Format repair and break rates, means of each type over its severities."""
    held_out = () if unseen is None else unseen.level_names
    both = []
    for measure in ("repair", "break"):
        rates: dict[str, dict[str, float]] = {}
        for each, levels in ((comparison, ("clean", *comparison.level_names)), (unseen, held_out)):
            for name, found in (each.changes() if each else {}).items():
                rates.setdefault(name, {}).update({level: found[measure][level] for level in levels})
        both.append(degradations.of_levels_by_type(rates, held_out).set_index("degradation"))
    repaired, broken = both
    cells = {name: [f"+{up:.1f} -{down:.1f}" for up, down in zip(repaired[name], broken[name], strict=True)]
             for name in repaired}  # fmt: skip
    return pd.DataFrame({"degradation": list(repaired.index), **cells}).to_string(index=False)


def _routing_by_type(comparison: Comparison, unseen: Comparison | None) -> str:
    """Format AUROC and wrongly routed samples, means of each type over its severities."""
    held_out = () if unseen is None else unseen.level_names
    columns: dict[str, dict[str, float]] = {"auroc": {}, "routed_wrongly_percent": {}}
    for each in filter(None, (comparison, unseen)):
        found = each.router_metrics()
        columns["auroc"] |= {level: found["auroc"][level] for level in each.level_names}
        missed = {level: found["missed_switch_percent"][level] for level in each.level_names}
        columns["routed_wrongly_percent"] |= {"clean": found["false_switch_percent"], **missed}
    return scores.format_table(degradations.of_levels_by_type(columns, held_out))


def _plot(context: Context, curves: dict[str, list[float]], title: str) -> bytes:
    if isinstance(context.corruption, GaussianBlur):
        return plots.accuracy_against_blur(curves, context.corruption.sigmas, title)
    return plots.accuracy_by_level(curves, context.corruption.level_names, title)
