"""assess: rank the filters of every convolution, most suspicious first."""

from __future__ import annotations

import argparse
import json

import pandas as pd
import torch

from deeppatch import options as command_line
from deeppatch.artifacts import state_digest
from deeppatch.blame import ratioestim
from deeppatch.blame.ablation import Sample, Scores
from deeppatch.blame.ranking import Ranking, choose, random_ranking, rank
from deeppatch.commands.context import Context, open_stage
from deeppatch.commands.correct import load_ranking
from deeppatch.commands.measure import append_accuracy, degraded_epochs, right_by_level
from deeppatch.commands.methods import SCORINGS
from deeppatch.data import views
from deeppatch.patching.patch_file import apply
from deeppatch.patching.train import train_patch
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
    context = open_stage(options, assess_name(options))
    model = context.base_model()
    if options.fs_method == "ratioestim":
        estimate_ratio(context, model)
    elif not context.already_finished():
        score_filters(context, model)


def assess_name(options: argparse.Namespace) -> str:
    """Return the name of this stage's folder; ratio estimation depends on the kind of patch and the side too."""
    parts = ["assess", options.fs_method]
    if options.fs_method == "ratioestim":
        parts += [options.crt_type] if options.crt_type != "replace" else []
        parts += [options.susp_side] if options.susp_side != "front" else []
    return "-".join(parts)


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
    info(f"{options.fs_method}: {sum(widths.values())} filters in {len(widths)} layers, {images} degraded val images each")
    finished = len(samples) * sum(widths[name] for name in done)
    with counting(passes, options.fs_method, finished) as tick:
        scores = method.score(
            network, samples, done, lambda scores: checkpoint.save({"scores": scores}), tick, amp=options.amp
        )
    ranking = rank(options.fs_method, scores, descending=method.descending)
    leave_ranking(context, model, ranking, {"val_images": len(context.splits.val), "degraded_images": images})
    context.stage.write("suspicion.png", plots.suspicion(
        scores, options.fs_method, f"{options.fs_method}, {options.model} on {context.source.name}, {images} degraded images"
    ))  # fmt: skip
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
    clean = views.clean(val, context.blur, options.batch_size)
    return [
        Sample(model.normalize(pixels), labels, model.normalize(originals))
        for (pixels, labels), (originals, _) in zip(degraded, clean, strict=True)
    ]


def leave_ranking(context: Context, model: Classifier, ranking: Ranking, facts: dict[str, object]) -> None:
    """Write the ranking as JSON, for correct, and as a table."""
    base = state_digest(model.state_dict())
    content = {"base": base, "limit": context.options.limit, **facts, **ranking.to_json()}
    context.stage.write("ranking.json", (json.dumps(content) + "\n").encode())
    rows = [
        {"layer": name, "rank": place + 1, "channel": channel, "score": ranking.scores[name][channel]}
        for name, order in ranking.order.items()
        for place, channel in enumerate(order)
    ]
    context.stage.write_table("ranking.csv", pd.DataFrame(rows))


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
        channels = choose(ranking, ratio, options.susp_side, options.seed)
        training = context.checkpoint(f"checkpoint-ratio{ratio:g}.pt", base=base, channels=channels)
        trained, _ = train_patch(
            model, channels, options.crt_type, degraded_epochs(context), append_accuracy(context), example,
            checkpoint=training, label=f"ratio {ratio:g}", **context.training_options(),
        )  # fmt: skip
        attachment = apply(model, trained, example)
        try:
            right = right_by_level(context, model, context.splits.val)
        finally:
            attachment.remove()
        training.remove()
        return right[1:]

    curve = checkpoint.load() or {}
    result = ratioestim.estimate(ratioestim.RATIOS, right_at, curve, checkpoint.save)
    facts = {"ratio": result["ratio"], "curve": result["curve"], "val_images": len(context.splits.val)}
    leave_ranking(context, model, ranking, facts)
    sigmas = [f"s={sigma:g}" for sigma in context.sigmas]
    table = pd.DataFrame([
        {"ratio": float(ratio), **dict(zip(sigmas, point["levels"], strict=True)), "mean": point["mean"],
         "standard_error": point["standard_error"]}
        for ratio, point in result["curve"].items()
    ])  # fmt: skip
    context.stage.write_table("curve.csv", table)
    title = f"{options.crt_type} patches, {ranking.method} ranking, {options.model} on {context.source.name}"
    context.stage.write("curve.png", plots.ratio_curve(result["curve"], result["ratio"], title))
    context.stage.finish()
    checkpoint.remove()
    info(f"estimated ratio {result['ratio']:g}; written to {context.stage.folder}")
    info(f"next: {command_line.spell('correct', options, susp_ratio=None)}")
