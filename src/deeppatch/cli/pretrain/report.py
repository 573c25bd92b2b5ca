"""The report of pretrain: accuracies on test, the history of a training, and a check of the normalisation."""

from __future__ import annotations

from typing import Any

from torch import nn

from deeppatch import metrics
from deeppatch.artifacts import tensors_to_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.corrections import correction
from deeppatch.cli.degradation_report import write_degradations
from deeppatch.cli.pretrain.inputs import published, spaced
from deeppatch.evaluation import correct_by_level
from deeppatch.pretraining.halfway import Halfway
from deeppatch.pretraining.normalisation import NormalisationCheck, check_normalisation
from deeppatch.progress import info
from deeppatch.report import scores
from deeppatch.training import History
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS


def write_training(context: Context, history: History, halfway: Halfway, underfitted: bool) -> dict[str, Any]:
    """Write the training history, and the under-fitted state if the recipe keeps one; return the facts."""
    options = context.options
    context.stage.write_table("history.csv", scores.training_table(history))
    named = "" if options.recipe == "default" else f" by the recipe {options.recipe}"
    facts: dict[str, Any] = {"weights": f"trained here{named}, {options.max_epoch} epochs, best {history.best + 1}"}
    if underfitted:
        context.stage.write("weights-underfitted.safetensors", halfway.state(history))
        facts["underfitted_epoch"] = history.best // 2 + 1
    return facts


def write_weights(context: Context, model: Classifier) -> None:
    """Write the weights that later stages start from."""
    context.stage.write("weights.safetensors", tensors_to_bytes(model.state_dict(), context.about))


def report(context: Context, model: nn.Module, facts: dict[str, Any], *, trained: bool = False) -> None:
    """Measure on test, print, and write metrics; `trained` tells whether the network was trained in this run."""
    options, test = context.options, context.splits.test
    batches = {"batch_size": options.batch_size, "amp": options.amp}
    correct = correct_by_level(model, test, context.corruption, **batches)
    measured = metrics.accuracies(correct, context.corruption.level_names, "blurred")
    check = None
    entry = published(context)
    is_given = options.state == "pretrained" and not trained
    if is_given and entry and entry.top1 and isinstance(model, Classifier):
        check = check_normalisation(
            model,
            context.splits.val,
            measured=measured["clean"],
            published=entry.top1,
            images=len(test),
            batch_size=options.batch_size,
        )
    chance = metrics.at_chance(measured["clean"], len(test), len(context.source.classes))
    if chance and trained:
        warn_of_training(context, measured["clean"])
    elif chance and isinstance(model, Classifier):
        warn_of_chance(context, model, measured["clean"])
    context.stage.write_json(
        "metrics.json",
        {
            "dataset": context.source.name,
            "model": options.model,
            **facts,
            "test_images": len(test),
            "limit": options.limit,
            "accuracy_percent": measured,
            "normalisation_doctor": None if check is None else report_normalisation(check, measured["clean"]),
        },
    )
    name = correction(options) if options.state == "corrected" else "pretrained"
    frame = scores.table({name: measured})
    context.stage.write_table("metrics.csv", frame)
    unseen = None if context.held_out is None else correct_by_level(model, test, context.held_out, **batches)
    by_type = write_degradations(context, {name: correct}, None if unseen is None else {name: unseen})
    print(scores.format_table(frame) if by_type is None else by_type)
    info(f"accuracy in percent on {len(test)} test images; written to {context.stage.folder}")


def warn_of_training(context: Context, percent: float) -> None:
    """Log that a network that was trained here is not better than guessing on clean images."""
    advice = "train longer (--epochs), or with another --lr"
    if context.options.modular:
        advice += (
            ", or with smaller --modular_weights: history.csv has each epoch, and these weights rise from a quarter"
        )
        advice += " of the training on"
    classes = len(context.source.classes)
    info(f"WARNING: {percent:.2f} % on clean images is what guessing one of {classes} classes reaches; {advice}")


def warn_of_chance(context: Context, model: Classifier, percent: float) -> None:
    """Log that a given network is not better than guessing on clean images, and what is usually the reason."""
    height, width = context.source.test.pixels.shape[-2:]
    mean, std = (spaced(values.flatten().tolist()) for values in (model.normalize.mean, model.normalize.std))
    made_for = context.architecture.image_size
    size = f", {context.options.model} is made for {made_for}" if made_for not in (None, height) else ""
    info(
        f"WARNING: {percent:.2f} % on clean images is what guessing one of {len(context.source.classes)} classes "
        "reaches. "
        f"Images have {width}x{height} pixels (--image_size{size}), mean {mean}, std {std} (--mean, --std); give those "
        "that the weights were trained with, and check the order of the classes"
    )


def report_normalisation(check: NormalisationCheck, measured: float) -> dict[str, Any]:
    """Log the results of other constants on val, and return them with the options that set the best ones."""
    info(
        f"doctor: {measured:.2f} % is far below the published {check.published_percent:.2f} %; "
        "trying other constants on val"
    )
    for name, found in check.val.items():
        mean, std = COMMON_STATS[name]
        info(
            f"doctor: {found['accuracy_percent']:6.2f} %, cross entropy {found['cross_entropy']:.4f}  "
            f"{name}: mean {spaced(mean)}, std {spaced(std)}"
        )
    mean, std = COMMON_STATS[check.best]
    advice = f"--mean {spaced(mean)} --std {spaced(std)}"
    if not check.explains:
        advice = "none of them explains it: check that the weights belong to this network and data set"
    info(f"doctor: best on val: {check.best}; {advice}")
    return {"published_percent": check.published_percent, "val": check.val, "best": check.best, "advice": advice}
