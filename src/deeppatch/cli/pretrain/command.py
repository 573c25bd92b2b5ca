"""pretrain: load or train a network, and measure it clean and at every blur level."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeppatch.cli.annotate.command import add_bias, split_problems
from deeppatch.cli.declared import DEGRADATION_FILES, Folder
from deeppatch.cli.options import RepairOptions
from deeppatch.modular.names import MODULARITY
from deeppatch.pretraining.recipes import RECIPES

if TYPE_CHECKING:
    from deeppatch.cli.context import Context

STAGE = "pretrain"
DESCRIPTION = "Pretrain: load published weights, or train; report standard accuracy and accuracy at every blur level."
EXAMPLE = "-m resnet32 -d cifar10"
RECIPE_HELP = (
    "how to train: default, or as for CNNSplitter strong (SGD, learning rate 0.01, a tenth of it after 3/10 and "
    "6/10 of 200 epochs, weight decay 1e-4), weak (the same but constant, 100 epochs) or poorfit (constant, 200 "
    "epochs, no momentum, weight decay or augmentation; leaves the best epoch, over-fitted, and the one at half of "
    "it, under-fitted), all three with batches of 128 and ImageNet's normalisation; or as for HybridRepair hybrid "
    "(learning rate 0.1, a tenth of it after 101 and 151 of 200 epochs, weight decay 5e-4, batches of 64); options "
    "that are given override those of a recipe (default: default)"
)
MEASURED = {name: about for name, about in DEGRADATION_FILES.items() if name != "differences.png"}  # of one network
ARTIFACTS = (
    Folder(
        "pretrain",
        "the base model, from which all later stages start",
        {
            "weights.safetensors": "the weights, with the names of the classes and the size of the images",
            "metrics.json": "accuracy on test, clean and at each level of blur, and where the weights are from",
            "metrics.csv": "the same accuracies as a table",
        },
        {
            "history.csv": "loss and accuracy on val after each epoch, where the network was trained here",
            "weights-underfitted.safetensors": "the weights at half of the best epoch, with `--recipe poorfit`",
            "split.safetensors": "which images are train, val, test and pool, with `--bias`",
            **MEASURED,
        },
    ),
    Folder(
        "eval-CORRECTION",
        "a corrected network, measured with `--state corrected`",
        {
            "metrics.json": "accuracy on test, clean and at each level of blur",
            "metrics.csv": "the same accuracies as a table",
        },
        MEASURED,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of pretrain: weights, training, normalisation, and the state to measure."""

    train: bool = False
    recipe: str = "default"
    bias: str | None = None
    splits: Path | None = None
    split_digest: str = ""
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    state: str = "pretrained"
    modular: bool = False
    modular_weights: Sequence[float] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("pretrain")
    group.add_argument("--train", action="store_true", help="train even where there are published weights")
    group.add_argument("--recipe", choices=list(RECIPES), default="default", metavar="NAME", help=RECIPE_HELP)
    add_bias(group)
    group.add_argument(
        "--mean", type=float, nargs=3, metavar="M", help="mean of the channels, in [0, 1] (default: the zoo's)"
    )
    group.add_argument(
        "--std", type=float, nargs=3, metavar="S", help="standard deviation of the channels (default: the zoo's)"
    )
    group.add_argument(
        "--modular",
        action="store_true",
        help="train so that modularize finds small modules: images of a class use the same few kernels, and images of "
        "different classes different ones",
    )
    group.add_argument(
        "--modular_weights",
        type=float,
        nargs=3,
        metavar=("COHESION", "COUPLING", "COMPACTNESS"),
        help="weights of these terms with --modular, which they reach at four tenths of the training (default: "
        f"{' '.join(f'{each:g}' for each in MODULARITY)})",
    )
    group.add_argument(
        "--state",
        choices=["pretrained", "corrected"],
        default="pretrained",
        help="measure the pretrained network, or the corrected one for -c, -f, --crt_type (default: pretrained)",
    )


def preset(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return the defaults of --recipe."""
    if options.recipe == "default":
        return {}
    recipe = RECIPES[options.recipe]
    values: dict[str, Any] = {name: getattr(recipe, name) for name in ("lr", "momentum", "weight_decay", "batch_size")}
    if recipe.statistics is not None:
        values |= {"mean": list(recipe.statistics[0]), "std": list(recipe.statistics[1])}
    return {"train": True, "max_epoch": recipe.epochs, **values}


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = []
    if options.train and options.weights:
        train = "--train" if options.recipe == "default" else "--recipe"
        messages.append(f"{train} and --weights exclude each other: train anew, or use the file")
    if (options.mean is None) != (options.std is None):
        messages.append("--mean and --std go together: give both")
    if not all(map(math.isfinite, options.mean or [])):
        messages.append("--mean: give finite numbers")
    elif any(value > 10 for value in options.mean or []):
        messages.append("--mean: pixels reach from 0 to 1; divide mean and std of pixels up to 255 by 255")
    if not all(0 < value < math.inf for value in options.std or []):
        messages.append("--std: give numbers above 0")
    if options.state == "corrected" and (options.train or options.mean or options.bias):
        messages.append("--state corrected only measures: leave out --train, --recipe, --bias, --mean and --std")
    elif options.bias and not (options.train or options.modular or options.weights):
        messages.append(f"--bias {options.bias}: published weights have seen all training images; add --train")
    messages += split_problems(options)
    if options.bias and options.val_share:
        messages.append("--val_share and --bias exclude each other: a bias has its own val")
    return messages + _problems_of_modularity(options)


def _problems_of_modularity(options: Options) -> list[str]:
    """Return the problems with training for modularity."""
    messages = []
    if not all(0 <= each < math.inf for each in options.modular_weights or []):
        messages.append("--modular_weights: give three numbers of 0 or more")
    if options.modular_weights is not None and not options.modular:
        messages.append("--modular_weights goes with --modular")
    if options.modular and (options.weights or options.state == "corrected"):
        messages.append("--modular trains from scratch: leave out --weights and --state corrected")
    return messages


def run(options: Options) -> None:
    """Measure one state of a model; the weights of the pretrained one are written for the later stages."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.corrections import correction
    from deeppatch.cli.predecessors import base_model, load_corrected
    from deeppatch.cli.pretrain.report import report

    if options.state == "pretrained":
        run_pretrained(options, open_stage(options, STAGE))
        return
    context = open_stage(options, "eval")
    model = load_corrected(context, base_model(context))
    context.begin()
    report(context, model, {"weights": f"corrected: {correction(options)}"})
    context.stage.finish()


def run_pretrained(options: Options, context: Context) -> None:
    """Load or train the network, measure it, and write its weights."""
    from deeppatch.cli.annotate.inputs import write_partition
    from deeppatch.cli.pretrain.inputs import classifier, modularity_loss, read_weights
    from deeppatch.cli.pretrain.report import report, write_training, write_weights
    from deeppatch.data.views import to_float
    from deeppatch.evaluation import check_classifier, check_corruption
    from deeppatch.modular.modularity_loss import first_modular_epoch, measure_modularity
    from deeppatch.pretraining.classifier import train_classifier
    from deeppatch.pretraining.halfway import Halfway
    from deeppatch.training import cross_entropy

    weights = read_weights(context)
    if context.already_finished():
        return
    model = classifier(context, weights)
    check_classifier(model, context.example, len(context.source.classes))
    for each in filter(None, (context.corruption, context.held_out)):
        check_corruption(each, to_float(context.splits.test.pixels[:2]))
    halfway = Halfway(context.stage.unfinished / "epochs", options.max_epoch)
    if weights is None:
        recipe = replace(
            RECIPES[options.recipe],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            epochs=options.max_epoch,
            batch_size=options.batch_size,
        )
        loss = modularity_loss(context, model, recipe)
        model, history = train_classifier(
            model,
            context.data,
            recipe,
            amp=options.amp,
            seed=options.seed,
            reseed=False,  # the stage has seeded torch
            checkpoint=context.checkpoint(),
            halfway=halfway if recipe.underfitted else None,
            loss=loss or cross_entropy,
            carried=loss,
            eligible=first_modular_epoch(recipe.epochs) if loss else 0,
        )
        facts = write_training(context, history, halfway, recipe.underfitted)
        if loss is not None:
            facts["modularity_on_val"] = measure_modularity(model, context.data.val)
    else:
        facts = {"weights": f"{weights.path.name}, {weights.origin}"}
    write_weights(context, model)
    write_partition(context)
    report(context, model, facts, trained=weights is None)
    context.stage.finish()
    context.checkpoint().remove()
    halfway.remove()
