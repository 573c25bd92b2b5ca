"""annotate: choose the images of a pool whose labels repair a network best, and those that need none."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeppatch.cli.arguments import model_name
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import ANNOTATE, StageOptions, call
from deeppatch.hybrid.budget import budget_problem
from deeppatch.hybrid.names import BIASES, BY_FEATURES, METHODS, PRIOR
from deeppatch.hybrid.published_names import bias_here, method_here

STAGE = "annotate"
DESCRIPTION = "Annotate: choose which images of a pool to label, within a budget, and which to learn from without."
EXAMPLE = "-m mobilenet -d cifar10 --bias B --method hybrid --budget 1%"
REPAIR = False
FEATURES = ("penultimate", "ssl")
ARTIFACTS = (
    Folder(
        "annotate-METHOD",
        "the images of the pool that are worth labelling",
        {
            "selection.safetensors": "which images are labelled, which share a label, and which stay without",
            "selection.json": "settings and counts, and diagnostics where the pool is simulated",
            "selection.csv": "a row for each image to label, with its reason and a column for the label",
            "contact.html": "a page to label these images on; where the pool is simulated, a page that shows them",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of annotate."""

    bias: str | None = None
    splits: Path | None = None
    split_digest: str = ""
    method: str = "hybrid"
    budget: str = "1%"
    features: str = "penultimate"
    encoder: str = "resnet18"
    encoder_epochs: int = 100
    views: int = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    add_selection(parser, "--encoder_epochs", "--epochs")


def add_bias(group: argparse._ArgumentGroup) -> None:
    """Add --bias and --splits, which all stages of HybridRepair share."""
    group.add_argument(
        "--bias",
        type=bias_here,
        choices=list(BIASES),
        help="cut the data set as HybridRepair does, into biased train and val, test and pool, with class bias A "
        "(none), B or C, which the authors number 0, 1 and 2 (default: the data set's own parts)",
    )
    group.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help="a .npz file that says which images are train and val under --bias: arrays such as B_train and B_val of "
        "indices in the first and in the second slice of the data set (default: they are drawn by --seed)",
    )


def split_problems(options: Any) -> list[str]:
    """Return the problems with --splits."""
    return ["--splits says which images --bias takes: give --bias too"] * bool(options.splits and not options.bias)


def add_selection(parser: argparse.ArgumentParser, *epochs: str) -> None:
    """Add the arguments of the selection; `epochs` are the names of the one for the encoder's epochs."""
    group = parser.add_argument_group("annotate")
    add_bias(group)
    group.add_argument(
        "--method",
        type=method_here,
        choices=[*METHODS, PRIOR],
        default=ANNOTATE["method"],
        metavar="NAME",
        help=f"method that chooses images: {', '.join(METHODS)}; the published names, such as TTA (hybrid) and "
        f"SSLRandom, are understood (default: {ANNOTATE['method']}); relearn has prior, too, which corrects the "
        "network for the shares of the classes in the pool, without labels and training",
    )
    group.add_argument(
        "--budget",
        default=ANNOTATE["budget"],
        metavar="N",
        help="number of labels to buy, or a share of the pool such as 1%% (default: 1%%)",
    )
    group.add_argument(
        "--features",
        choices=list(FEATURES),
        default=ANNOTATE["features"],
        help=f"features for {', '.join(BY_FEATURES)} to compare images: the model's last ones, or those of an encoder "
        "that is trained here on images without labels (default: penultimate)",
    )
    group.add_argument(
        "--encoder",
        type=model_name,
        default=ANNOTATE["encoder"],
        metavar="NAME",
        help=f"network to train for --features ssl (default: {ANNOTATE['encoder']})",
    )
    group.add_argument(
        *epochs,
        type=int,
        default=ANNOTATE["encoder_epochs"],
        metavar="N",
        help=f"epochs of its training (default: {ANNOTATE['encoder_epochs']})",
    )
    group.add_argument(
        "--views",
        type=int,
        default=ANNOTATE["views"],
        metavar="N",
        help="AugMix views of each image, in addition to itself (default: 8)",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    command = f"{call(options.prefix, 'relearn')} --method {PRIOR}"
    chooses_nothing = f"--method {PRIOR} needs no label, so that annotate has nothing to choose; run only {command}"
    return [chooses_nothing] * (options.method == PRIOR) + problems_of_selection(options)


def problems_of_selection(options: Options) -> list[str]:
    """Return the problems with the options of the selection."""
    problem = budget_problem(options.budget)
    messages = [f"--budget {options.budget}: {problem}"] if problem else []
    for name in ("views", "encoder_epochs"):
        messages += [f"--{name} {getattr(options, name)}: give at least 1"] * (getattr(options, name) < 1)
    if options.features != "penultimate" and options.method not in BY_FEATURES:
        messages.append(f"--features {options.features} can only be used with --method {', '.join(BY_FEATURES)}")
    messages += split_problems(options)
    if not options.bias and not options.dataset.startswith("folder:"):
        messages.append(
            f"-d {options.dataset}: give --bias to simulate a pool, or folder:PATH with images in PATH/pool"
        )
    return messages


def run(options: Options) -> None:
    """Choose images, query the oracle for their labels, and write the selection."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.annotate import inputs, report
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model
    from deeppatch.hybrid.budget import affordable
    from deeppatch.hybrid.choosing import choose
    from deeppatch.hybrid.selection_methods import SelectionInputs
    from deeppatch.progress import info

    context = open_stage(options, STAGE)
    report.check_no_labels_given(context)
    model = base_model(context)
    pool = inputs.pool_of(context)
    budget = affordable(options.budget, len(pool), "--budget")
    if context.already_finished():
        return
    encoder = inputs.encoder_of(context, pool) if options.features == "ssl" else None
    train = context.splits.train
    inputs_of_selection = SelectionInputs(
        model,
        pool.pixels,
        train.pixels[:],
        options.seed,
        options.views,
        encoder,
        options.batch_size,
        options.amp,
        train_labels=train.labels,
        val=context.splits.val,
    )
    choice = choose(inputs_of_selection, budget, method=options.method, oracle=pool.truth)
    found = {
        "labels_bought": choice.labels_bought,
        "base": state_digest(model.state_dict()),
        "encoder": encoder.facts if encoder else None,
    }
    report.write_selection(context, pool, inputs_of_selection, choice, found)
    context.stage.finish()
    context.checkpoint().remove()
    spent = f"{choice.labels_bought} of {budget} labels {'bought' if options.bias else 'to be given'}"
    info(f"{options.method}: {spent}; written to {context.stage.folder}")
    if choice.labels_bought and not options.bias:
        info(f"label the images in {context.stage.folder / report.PAGE}, which opens in a browser")
