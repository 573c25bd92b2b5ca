"""pretrain: load or train a network, and measure it clean and at every blur level."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.cli.biased import add_bias, leave_partition
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.measure import right_by_level
from deeppatch.cli.naming import correction
from deeppatch.cli.predecessors import base_model, load_corrected
from deeppatch.cli.pretrain.doctor import examine
from deeppatch.cli.pretrain.pretraining import halfway, pretrained
from deeppatch.cli.pretrain.recipes import RECIPES, told
from deeppatch.progress import info
from deeppatch.report import scores
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import ENTRIES

STAGE = "pretrain"
DESCRIPTION = "Pretrain: load published weights, or train; report standard accuracy and accuracy at every blur level."
EXAMPLE = "-m resnet32 -d cifar10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("pretrain")
    group.add_argument("--train", action="store_true", help="train even where there are published weights")
    group.add_argument("--recipe", choices=list(RECIPES), default="default", metavar="NAME", help=told())
    add_bias(group)
    group.add_argument(
        "--mean", type=float, nargs=3, metavar="M", help="mean of the channels, in [0, 1] (default: the zoo's)"
    )
    group.add_argument(
        "--std", type=float, nargs=3, metavar="S", help="standard deviation of the channels (default: the zoo's)"
    )
    group.add_argument(
        "--state",
        choices=["pretrained", "corrected"],
        default="pretrained",
        help="measure the pretrained network, or what correct left for -c, -f, --crt_type (default: pretrained)",
    )
    parser.set_defaults(problems=problems)


def preset(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return the defaults of --recipe."""
    return RECIPES[options.recipe].options


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.train and options.weights:
        train = "--train" if options.recipe == "default" else "--recipe"
        found.append(f"{train} and --weights exclude each other: train anew, or use the file")
    if (options.mean is None) != (options.std is None):
        found.append("--mean and --std go together: give both")
    if not all(map(math.isfinite, options.mean or [])):
        found.append("--mean: give finite numbers")
    if not all(0 < value < math.inf for value in options.std or []):
        found.append("--std: give numbers above 0")
    if options.state == "corrected" and (options.train or options.mean or options.bias):
        found.append("--state corrected measures what is there: leave out --train, --recipe, --bias, --mean and --std")
    elif options.bias and not (options.train or options.weights):
        found.append(f"--bias {options.bias}: published weights have seen all training images; add --train")
    found += ["--val_share and --bias exclude each other: a bias has its own val"] * bool(
        options.bias and options.val_share
    )
    return found


def run(options: argparse.Namespace) -> None:
    """Measure one state of a model; the pretrained one is left as weights for the later stages."""
    if options.state == "corrected":
        context = open_stage(options, "eval")
        model = load_corrected(context, base_model(context))
        facts: dict[str, Any] = {"weights": f"corrected: {correction(options)}"}
    else:
        context = open_stage(options, STAGE)
        found, facts = pretrained(context)
        if found is None:
            return
        model = found
        context.stage.write("weights.safetensors", tensors_to_bytes(model.state_dict(), context.about))
        leave_partition(context)
    report(context, model, facts)
    context.stage.finish()
    context.checkpoint().remove()
    halfway(context).remove()


def report(context: Context, model: Classifier, facts: dict[str, Any]) -> None:
    """Measure on test, print, and write metrics."""
    test = context.splits.test
    right = right_by_level(context, model, test)
    measured = scores.accuracies(right, context.sigmas)
    doctor = None
    entry = ENTRIES.get((context.options.dataset, context.options.model))
    if entry and context.options.state == "pretrained" and not context.options.train:
        doctor = examine(context, model, measured["clean"], entry.top1)
    context.stage.write_json(
        "metrics.json",
        {
            "dataset": context.source.name,
            "model": context.options.model,
            **facts,
            "test_images": len(test),
            "limit": context.options.limit,
            "accuracy_percent": measured,
            "normalisation_doctor": doctor,
        },
    )
    corrected = context.options.state == "corrected"
    frame = scores.table({correction(context.options) if corrected else "pretrained": measured})
    context.stage.write_table("metrics.csv", frame)
    print(scores.show(frame))
    info(f"accuracy in percent on {len(test)} test images; written to {context.stage.folder}")
