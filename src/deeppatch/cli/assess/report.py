"""The report of assess: the ranking, its plot, the curve of ratio estimation, and the record."""

from __future__ import annotations

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.cli.rankings import write_ranking
from deeppatch.data import views
from deeppatch.localization.ranking import Ranking
from deeppatch.localization.ratio_estimation import RatioEstimate
from deeppatch.localization.scorers import SCORERS
from deeppatch.progress import info
from deeppatch.report import plots
from deeppatch.zoo.classifier import Classifier


def report_ranking(context: Context, model: Classifier, ranking: Ranking) -> None:
    """Write the ranking, its plot and the record."""
    options, images, scorer = context.options, len(context.data.val), SCORERS[ranking.method]
    degraded = images if scorer.paired else len(views.expand(context.data.val, context.corruption, images).index)
    write_ranking(context, model, ranking, {"val_images": images, "degraded_images": degraded, **ranking.facts})
    title = f"suspicion by {ranking.method}: {options.model} on {context.data.name}, {degraded} degraded images"
    scores = {name: [scorer.scale * value for value in row] for name, row in ranking.scores.items()}
    plot = plots.filter_scores(scores, scorer.unit, title, descending=scorer.descending)
    context.stage.write("suspicion.png", plot)
    context.stage.finish()
    context.checkpoint().remove()
    info(f"ranked; written to {context.stage.folder}")


def report_ratio(context: Context, model: Classifier, estimate: RatioEstimate) -> None:
    """Write the ranking with the estimated ratio, the curve as table and plot, and the record."""
    options = context.options
    facts = {"ratio": estimate.ratio, "curve": estimate.curve, "val_images": len(context.data.val)}
    write_ranking(context, model, estimate.ranking, facts)
    table = pd.DataFrame(
        [
            {
                "ratio": float(ratio),
                **dict(zip(context.corruption.level_names, point["levels"], strict=True)),
                "mean": point["mean"],
                "standard_error": point["standard_error"],
            }
            for ratio, point in estimate.curve.items()
        ]
    )
    context.stage.write_table("curve.csv", table)
    title = f"{options.crt_type} patches, {estimate.ranking.method} ranking, {options.model} on {context.data.name}"
    title += f", {len(context.data.val)} val images"
    context.stage.write("curve.png", plots.ratio_curve(estimate.curve, estimate.ratio, title))
    context.stage.finish()
    context.checkpoint("curve.pt").remove()
    info(f"estimated ratio {estimate.ratio:g}; written to {context.stage.folder}")
    info(f"next: {context.command('correct', susp_ratio=None)}")
