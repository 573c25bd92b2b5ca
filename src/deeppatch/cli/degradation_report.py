"""What pretrain and evaluate report by type and severity, where degradations are others than the default."""

from __future__ import annotations

from collections.abc import Mapping

from deeppatch.cli.context import Context
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.metrics import Rows
from deeppatch.report import degradations


def write_degradations(
    context: Context,
    correct: Mapping[str, Rows],
    unseen: Mapping[str, Rows] | None = None,
    reference: str | None = None,
) -> str | None:
    """Write errors by type and severity as CSV, JSON and heat maps, and return the table of types to print.

    None is returned, and nothing written, where the published blur is the only degradation.

    Args:
        context: The run.
        correct: The correct predictions of each network, clean first, then at each level.
        unseen: Those at held-out levels.
        reference: The network that the others are compared with.
    """
    held_out = context.held_out
    if held_out is None and isinstance(context.corruption, GaussianBlur):
        return None
    levels = context.corruption.level_names
    table = degradations.long_table(correct, levels, unseen or {}, () if held_out is None else held_out.level_names)
    stage, options, images = context.stage, context.options, len(context.data.test)
    stage.write_table("corruptions.csv", table)
    facts = {"frost": "synthetic", "source": options.noise_type, "severity": options.severity}
    stage.write_json(
        "corruptions.json",
        {**facts, "held_out": options.hold_out, "error_percent": degradations.summary(table, reference)},
    )
    title = f"{options.model} on {context.source.name}, {images} test images"
    stage.write("corruptions.png", degradations.accuracy_maps(table, title))
    if reference is not None:
        stage.write("differences.png", degradations.difference_maps(table, reference, title))
    return degradations.format_by_type(degradations.by_type(table))
