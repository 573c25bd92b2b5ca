"""annotate: choose the images of a pool whose labels repair a network best, and those that need none."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeppatch.cli.annotate.choices import FEATURES, GIVEN, add_studied, features_or_file, problems_of_studied
from deeppatch.cli.arguments import Suggestions, add_number, model_name
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import ANNOTATE, StageOptions, call
from deeppatch.hybrid.budget import budget_problem
from deeppatch.hybrid.choice_settings import CLUSTER_SIZE
from deeppatch.hybrid.names import BIASES, BY_FEATURES, CORESET_STARTS, METHODS, PRIOR
from deeppatch.hybrid.published_names import bias_here, method_here

STAGE = "annotate"
DESCRIPTION = "Annotate: choose which images of a pool to label, within a budget, and which to learn from without."
EXAMPLE = "-m mobilenet -d cifar10 --bias B --method hybrid --budget 1%"
REPAIR = False
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
    features_file: Path | None = None
    encoder: str = "resnet18"
    encoder_epochs: int = 100
    views: int = 8
    tau: float | str = "auto"
    cluster_size: int = CLUSTER_SIZE
    coreset_start: str = CORESET_STARTS[0]
    rounds: int = 1
    step: int | None = None

    def __post_init__(self) -> None:
        """Tell names of features from files."""
        if self.features not in (*FEATURES, GIVEN):
            object.__setattr__(self, "features_file", self.features_file or Path(self.features))
        if self.features_file is not None:
            object.__setattr__(self, "features", GIVEN)


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
        type=features_or_file,
        choices=Suggestions([*FEATURES]),
        default=ANNOTATE["features"],
        metavar="NAME",
        help=f"features for {', '.join(BY_FEATURES)} to compare images: the model's last ones (penultimate), those of "
        "an encoder that is trained here on images without labels (ssl), or a checkpoint of MoCo v3 with a ResNet-50 "
        "(default: penultimate)",
    )
    group.add_argument(
        "--features_file", type=Path, metavar="FILE", help="the same checkpoint, by an option of its own"
    )
    group.add_argument(
        "--encoder",
        type=model_name,
        default=ANNOTATE["encoder"],
        metavar="NAME",
        help=f"network to train for --features ssl (default: {ANNOTATE['encoder']})",
    )
    add_number(
        group,
        *epochs,
        default=ANNOTATE["encoder_epochs"],
        what=f"epochs of its training (default: {ANNOTATE['encoder_epochs']})",
    )
    add_number(
        group,
        "--views",
        default=ANNOTATE["views"],
        what="AugMix views of each image, in addition to itself (default: 8)",
    )
    add_studied(group)


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
    messages += problems_of_studied(options) + split_problems(options)
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
    from deeppatch.hybrid.rounds import round_budgets
    from deeppatch.progress import info

    context = open_stage(options, STAGE)
    report.check_no_labels_given(context)
    model = base_model(context)
    pool = inputs.pool_of(context)
    budget = round_budgets(affordable(options.budget, len(pool), "--budget"), options.rounds, options.step)[0]
    if context.already_finished():
        return
    encoder = inputs.encoder_of(context, pool, model)
    inputs_of_selection = inputs.selection_inputs(context, model, pool, encoder)
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
