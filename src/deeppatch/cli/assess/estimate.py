"""assess -f ratioestim: train a patch at each ratio and choose one."""

from __future__ import annotations

import pandas as pd
import torch

from deeppatch.artifacts import state_digest
from deeppatch.cli.context import Context
from deeppatch.cli.measure import append_accuracy, degraded_epochs, right_by_level
from deeppatch.cli.predecessors import patched_copy
from deeppatch.cli.rankings import leave_ranking, load_ranking
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import convolutions
from deeppatch.localization import ratio_estimation
from deeppatch.localization.ranking import choose, random_ranking
from deeppatch.patching.training import train_patch
from deeppatch.progress import info
from deeppatch.report import plots
from deeppatch.zoo.classifier import Classifier


def estimate_ratio(context: Context, model: Classifier) -> None:
    """Train a patch at each ratio and leave the curve, the chosen ratio and the ranking that was used."""
    options = context.options
    widths = {name: conv.out_channels for name, conv in convolutions(model.network).items()}
    ranking = load_ranking(context, model)[0] if options.ranking else random_ranking(widths, options.seed)
    if context.already_finished():
        return
    base = state_digest(model.state_dict())
    checkpoint = context.checkpoint("curve.pt", base=base)
    example = context.example

    def right_at(ratio: float) -> torch.Tensor:
        torch.manual_seed(options.seed)  # so that a patch does not depend on which ratios came before
        channels = choose(ranking, ratio, options.susp_side, options.seed)
        training = context.checkpoint(f"checkpoint-ratio{ratio:g}.pt", base=base, channels=channels)
        trained, _ = train_patch(
            model,
            channels,
            options.crt_type,
            degraded_epochs(context),
            append_accuracy(context),
            example,
            checkpoint=training,
            label=f"ratio {ratio:g}",
            **context.training_options(),
        )
        right = right_by_level(context, patched_copy(context, model, trained), context.splits.val)
        training.remove()
        return right[1:]

    curve = ranks.broadcast_from_rank0(checkpoint.load) or {}
    result = ratio_estimation.estimate(ratio_estimation.RATIOS, right_at, curve, checkpoint.save)
    facts = {"ratio": result["ratio"], "curve": result["curve"], "val_images": len(context.splits.val)}
    leave_ranking(context, model, ranking, facts)
    sigmas = [f"s={sigma:g}" for sigma in context.sigmas]
    table = pd.DataFrame(
        [
            {
                "ratio": float(ratio),
                **dict(zip(sigmas, point["levels"], strict=True)),
                "mean": point["mean"],
                "standard_error": point["standard_error"],
            }
            for ratio, point in result["curve"].items()
        ]
    )
    context.stage.write_table("curve.csv", table)
    title = f"{options.crt_type} patches, {ranking.method} ranking, {options.model} on {context.source.name}"
    context.stage.write("curve.png", plots.ratio_curve(result["curve"], result["ratio"], title))
    context.stage.finish()
    checkpoint.remove()
    info(f"estimated ratio {result['ratio']:g}; written to {context.stage.folder}")
    info(f"next: {context.command('correct', susp_ratio=None)}")
