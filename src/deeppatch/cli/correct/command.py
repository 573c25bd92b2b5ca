"""correct: train a patch for the suspicious filters, or fine-tune the whole network."""

from __future__ import annotations

import argparse
from typing import Any

from deeppatch.artifacts import state_digest, tensors_to_bytes
from deeppatch.cli import options as command_line
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.measure import append_accuracy, degraded_epochs, training_table
from deeppatch.cli.predecessors import base_model
from deeppatch.cli.rankings import load_ranking
from deeppatch.errors import UserError
from deeppatch.localization.ranking import choose
from deeppatch.patching.training import train_patch
from deeppatch.progress import info
from deeppatch.retrain.finetune import finetune
from deeppatch.training import History
from deeppatch.zoo.classifier import Classifier

STAGE = "correct"
DESCRIPTION = "Correct: train a patch for the most suspicious filters on degraded images, or fine-tune everything."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
RANKS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone: there are none."""


def run(options: argparse.Namespace) -> None:
    """Train the correction that -c names and leave it for evaluate."""
    context = open_stage(options, STAGE)
    model = base_model(context)
    METHODS[options.crt_method](context, model)


def patch(context: Context, model: Classifier) -> None:
    """Train a patch; leaves patch.safetensors."""
    options = context.options
    ranking, estimated = load_ranking(context, model)
    ratio = options.susp_ratio or estimated or command_line.DEFAULT_RATIO
    channels = choose(ranking, ratio, options.susp_side, options.seed)
    if not channels:
        raise UserError(f"--susp_ratio {ratio:g} chooses no filter in any layer; give a larger share")
    if context.already_finished():
        return
    count = sum(map(len, channels.values()))
    info(
        f"patching {count} filters in {len(channels)} layers (ratio {ratio:g}, {options.susp_side} of {ranking.method})"
    )
    trained, history = train_patch(
        model,
        channels,
        options.crt_type,
        degraded_epochs(context),
        append_accuracy(context),
        context.example,
        checkpoint=context.checkpoint(base=state_digest(model.state_dict()), channels=channels),
        **context.training_options(),
    )
    facts = {
        "kind": options.crt_type,
        "ranking": ranking.method,
        "ratio": ratio,
        "side": options.susp_side,
        "filters": count,
        "channels": channels,
    }
    finish(context, "patch.safetensors", trained.to_bytes(), history, facts)


def tune(context: Context, model: Classifier) -> None:
    """Fine-tune all parameters; leaves weights.safetensors."""
    if context.already_finished():
        return
    base = state_digest(model.state_dict())
    checkpoint = context.checkpoint(base=base)
    tuned, history = finetune(
        model, degraded_epochs(context), append_accuracy(context), checkpoint=checkpoint, **context.training_options()
    )
    finish(
        context,
        "weights.safetensors",
        tensors_to_bytes(tuned.state_dict(), {"base": base, **context.about}),
        history,
        {},
    )


METHODS = {"patch": patch, "finetune": tune}


def finish(context: Context, name: str, content: bytes, history: History, facts: dict[str, Any]) -> None:
    """Write the correction, how it was trained, and the record."""
    path = context.stage.write(name, content)
    context.stage.write_table("history.csv", training_table(history))
    context.stage.write_json(
        "metrics.json",
        {
            "method": context.options.crt_method,
            **facts,
            "limit": context.options.limit,
            "train_images": len(context.splits.train),
            "val_images": len(context.splits.val),
            "epochs": len(history.loss),
            "best_epoch": history.best + 1,
            "val_append_accuracy_percent": 100 * history.accuracy[history.best],
        },
    )
    context.stage.finish()
    context.checkpoint().remove()
    best = 100 * history.accuracy[history.best]
    info(f"best epoch {history.best + 1}: {best:.2f} % on val append; {path}, {len(content)} bytes")
