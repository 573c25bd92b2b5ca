"""assess: rank the filters of every convolution, most suspicious first."""

from __future__ import annotations

import argparse

import torch

from deeppatch import options as command_line
from deeppatch.artifacts import state_digest
from deeppatch.blame.ablation import Sample, Scores
from deeppatch.blame.ranking import rank
from deeppatch.commands.context import Context, open_stage
from deeppatch.commands.estimate import estimate_ratio
from deeppatch.commands.methods import SCORINGS
from deeppatch.commands.models import base_model
from deeppatch.commands.rankings import leave_ranking
from deeppatch.data import views
from deeppatch.progress import counting, info
from deeppatch.report import plots
from deeppatch.surgery import convolutions
from deeppatch.zoo.classifier import Classifier

STAGE = "assess"
DESCRIPTION = "Assess: rank the filters of every convolution by how much they are to blame on degraded images."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone: there are none."""


def run(options: argparse.Namespace) -> None:
    """Rank with the method that -f names and leave ranking, table and plot."""
    context = open_stage(options, command_line.assess_name(options))
    model = base_model(context)
    if options.fs_method == "ratioestim":
        estimate_ratio(context, model)
    elif not context.already_finished():
        score_filters(context, model)


def score_filters(context: Context, model: Classifier) -> None:
    """Score every filter on val, layer by layer; finished layers survive an interruption."""
    options, network = context.options, model.network
    method = SCORINGS[options.fs_method]
    samples = val_samples(context, model)
    widths = {name: conv.out_channels for name, conv in convolutions(network).items()}
    checkpoint = context.checkpoint(base=state_digest(model.state_dict()))
    done: Scores = (checkpoint.load() or {}).get("scores", {})
    passes = len(samples) * sum(widths.values())
    images = sum(len(sample.labels) for sample in samples)
    filters = f"{sum(widths.values())} filters in {len(widths)} layers"
    info(f"{options.fs_method}: {filters}, {images} degraded val images each")
    finished = len(samples) * sum(widths[name] for name in done)
    with counting(passes, options.fs_method, finished) as tick:
        scores = method.score(
            network, samples, done, lambda scores: checkpoint.save({"scores": scores}), tick, amp=options.amp
        )
    ranking = rank(options.fs_method, scores, descending=method.descending)
    leave_ranking(context, model, ranking, {"val_images": len(context.splits.val), "degraded_images": images})
    title = f"{options.fs_method}, {options.model} on {context.source.name}, {images} degraded images"
    context.stage.write("suspicion.png", plots.suspicion(scores, options.fs_method, title))
    context.stage.finish()
    checkpoint.remove()
    info(f"ranked; written to {context.stage.folder}")


@torch.inference_mode()
def val_samples(context: Context, model: Classifier) -> list[Sample]:
    """Return val as the ranking reads it, degraded and normalised once for all filters."""
    options, val = context.options, context.splits.val
    if options.fs_method == "perfloss":
        view = views.expand(val, context.blur, options.batch_size)
        return [Sample(model.normalize(pixels), labels) for pixels, labels in view]
    degraded = views.degraded_draw(val, context.blur, options.batch_size, options.seed)
    clean = views.clean(val, options.batch_size)
    return [
        Sample(model.normalize(pixels), labels, model.normalize(originals))
        for (pixels, labels), (originals, _) in zip(degraded, clean, strict=True)
    ]
