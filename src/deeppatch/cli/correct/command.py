"""correct: train a patch for the suspicious filters, or fine-tune the whole network."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import RepairOptions

if TYPE_CHECKING:
    from deeppatch.cli.context import Context
    from deeppatch.zoo.classifier import Classifier

STAGE = "correct"
DESCRIPTION = "Correct: train a patch for the most suspicious filters on degraded images, or fine-tune everything."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
RANKS = True
ARTIFACTS = (
    Folder(
        "correct-finetune",
        "the fine-tuned network, with `-c finetune`",
        {
            "weights.safetensors": "the weights of the best epoch on val",
            "history.csv": "loss and accuracy on val after each epoch",
            "metrics.json": "numbers of images and epochs, the best epoch, and its accuracy on val",
        },
    ),
    Folder(
        "correct-patch-KIND-METHOD[-ratioR][-SIDE]",
        "a patch for the filters that a ranking chooses, with `-c patch`",
        {
            "patch.safetensors": "the new filters, the channels that they replace, and the digest of the base model",
            "history.csv": "loss and accuracy on val after each epoch",
            "metrics.json": "the patched filters, numbers of images and epochs, the best epoch, its accuracy on val",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of correct, which are those that DeepPatch's stages share."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: all arguments of this stage are those that DeepPatch's stages share."""


def run(options: Options) -> None:
    """Train the correction that -c names and write it for evaluate."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model

    context = open_stage(options, STAGE)
    model = base_model(context)
    if options.crt_method == "patch":
        run_patch(options, context, model)
    elif not context.already_finished():
        run_finetune(options, context, model)


def run_patch(options: Options, context: Context, model: Classifier) -> None:
    """Train a patch for the filters that the ranking chooses, and write patch.safetensors."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.correct.inputs import chosen_filters
    from deeppatch.cli.correct.report import report
    from deeppatch.patching.training import train_patch

    channels, facts = chosen_filters(context, model)
    if context.already_finished():
        return
    patch = train_patch(
        model,
        context.data,
        context.corruption,
        channels,
        kind=options.crt_type,
        epochs=options.crt_epoch,
        batch_size=options.batch_size,
        seed=options.seed,
        reseed=False,  # the stage has seeded torch
        checkpoint=context.checkpoint(base=state_digest(model.state_dict()), channels=channels),
        **context.training_options(),
    )
    assert patch.history is not None
    report(context, "patch.safetensors", patch.to_bytes(), patch.history, {"kind": options.crt_type, **facts})


def run_finetune(options: Options, context: Context, model: Classifier) -> None:
    """Fine-tune all parameters, and write weights.safetensors."""
    from deeppatch.artifacts import state_digest, tensors_to_bytes
    from deeppatch.cli.correct.report import report
    from deeppatch.retrain.finetune import finetune
    from deeppatch.training import History

    base = state_digest(model.state_dict())
    tuned = finetune(
        model,
        context.data,
        context.corruption,
        epochs=options.crt_epoch,
        batch_size=options.batch_size,
        seed=options.seed,
        reseed=False,  # the stage has seeded torch
        checkpoint=context.checkpoint(base=base),
        **context.training_options(),
    )
    content = tensors_to_bytes(tuned.state_dict(), {"base": base, **context.about})
    history = tuned.history
    assert isinstance(history, History)
    report(context, "weights.safetensors", content, history, {})
