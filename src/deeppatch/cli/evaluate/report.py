"""The report of evaluate: what the repair gained and what it cost, as JSON, CSV, plot and printed table."""

from __future__ import annotations

from typing import Any

from deeppatch.cli.context import Context
from deeppatch.cli.evaluate.answers import Answers, Routing
from deeppatch.report import plots, scores


def write_report(context: Context, answers: dict[str, Answers], routing: Routing, calibration: dict[str, Any]) -> None:
    """Write metrics.json, metrics.csv, router.csv and accuracy.png, and print the tables."""
    options, sigmas, stage = context.options, context.sigmas, context.stage
    accuracy = {name: _accuracies(each, context) for name, each in answers.items()}
    before = answers["pretrained"]
    changed = {name: _changes(each, before, context) for name, each in answers.items() if name != "pretrained"}
    card = scores.scorecard(routing.scores, routing.switched, sigmas)
    stage.write_json(
        "metrics.json",
        {
            "dataset": context.source.name,
            "model": options.model,
            "test_images": len(context.splits.test),
            "limit": options.limit,
            "switch": options.switch,
            "router": options.router,
            "accuracy_percent": accuracy,
            "change_against_pretrained_percent": changed,
            "routing": card,
            "calibration": calibration,
        },
    )

    table = scores.table(accuracy)
    stage.write_table("metrics.csv", scores.with_changes(table, changed))
    router_table = scores.routing_table(card)
    stage.write_table("router.csv", router_table)
    curves = {name: [row[view] for view in scores.view_names(sigmas)] for name, row in accuracy.items()}
    title = f"{options.model} on {context.source.name}, {len(context.splits.test)} test images"
    stage.write("accuracy.png", plots.accuracy_against_blur(curves, sigmas, title))

    print(scores.show(table))
    print("\nrepaired (+, wrong to right) and broken (-, right to wrong) against pretrained, percent of all images")
    print(scores.show_changes(changed))
    print(f"\nrouter: {options.router}, one decision a {options.switch}")
    print(scores.show(router_table))


def _accuracies(each: Answers, context: Context) -> dict[str, float]:
    return {**scores.accuracies(each.by_level, context.sigmas), "mixed": 100 * each.in_stream.double().mean().item()}


def _changes(each: Answers, before: Answers, context: Context) -> dict[str, dict[str, float]]:
    changed = scores.changes(each.by_level, before.by_level, context.sigmas)
    changed["repair"]["mixed"] = 100 * (each.in_stream & ~before.in_stream).double().mean().item()
    changed["break"]["mixed"] = 100 * (before.in_stream & ~each.in_stream).double().mean().item()
    return changed
