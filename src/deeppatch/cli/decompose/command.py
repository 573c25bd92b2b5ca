"""decompose: judge and fine-tune a head that reads k features a class."""

from __future__ import annotations

import argparse
from pathlib import Path

from deeppatch.cli.context import open_stage
from deeppatch.cli.decompose.examining import essential, mutual_information, validate
from deeppatch.cli.decompose.sweeping import sweep
from deeppatch.cli.decompose.tuning import finetune
from deeppatch.cli.features import subject
from deeppatch.cli.options import DEFAULT_K, USUAL_KS

STAGE = "decompose"
DESCRIPTION = """Decompose the last layer: each class reads only its k most influential features.

  validate      accuracy with the whole last layer and with the decomposed one; multiply-adds and time of both
  essential     right answers of each class when its features, or all others, are replaced by noise
  mutual-info   mean mutual information between the classes' sets of features
  finetune      train the decomposed network, or with --head_only its head on cached features
  sweep         accuracy against k, without and with head-only fine-tuning"""
EXAMPLE = "validate -m resnet20a -d cifar10"
REPAIR = False
ACTIONS = {
    "validate": validate, "essential": essential, "mutual-info": mutual_information, "finetune": finetune,
    "sweep": sweep,
}  # fmt: skip
# the actions that heed an option
HEEDED = {
    "csg": ("essential", "mutual-info"), "head_only": ("finetune",), "draws": ("essential",),
    "lr": ("finetune", "sweep"), "max_epoch": ("finetune", "sweep"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    group = parser.add_argument_group("decompose")
    group.add_argument(
        "-i",
        "--indices",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="index files {class: [features]} (default: what influence left for each -k)",
    )
    group.add_argument(
        "-k",
        type=int,
        nargs="+",
        metavar="K",
        help="features a class (default: 5; mutual-info 5 10 20; sweep 5 to 64)",
    )
    group.add_argument(
        "--csg",
        type=Path,
        metavar="FILE",
        help="checkpoint of class-specific-gate training to compare with (essential, mutual-info)",
    )
    group.add_argument(
        "--draws", type=int, default=5, metavar="N", help="draws of the noise (essential; default: %(default)s)"
    )
    tuning = parser.add_argument_group("finetune, sweep")
    tuning.add_argument("--lr", type=float, default=2e-4, metavar="X", help="learning rate of Adam (default: 2e-4)")
    tuning.add_argument("-e", "--max_epoch", type=int, default=5, metavar="N", help="epochs (default: %(default)s)")
    tuning.add_argument(
        "--head_only",
        action="store_true",
        help="train the head alone, on cached features of images without crop and flip (finetune)",
    )
    parser.set_defaults(problems=lambda options: problems(parser, options), batch_size=64)


def problems(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = [
        f"--{name} goes with {' and '.join(actions)}, not with {options.action}"
        for name, actions in HEEDED.items()
        if options.action not in actions and getattr(options, name) != parser.get_default(name)
    ]
    if options.draws < 1:
        found.append(f"--draws {options.draws}: give at least 1")
    found += [f"-k {k}: give at least 1 feature" for k in options.k or [] if k < 1]
    if options.k and options.indices:
        found.append("-k and -i exclude each other: a file brings its own k")
    if options.indices and options.action == "sweep":
        found.append("-i does not go with sweep, which extracts the features for every k itself")
    if options.action == "finetune" and len(options.indices or options.k or [0]) > 1:
        found.append("finetune takes one set of features: give one -i, or one -k")
    return found


def run(options: argparse.Namespace) -> None:
    """Do what the action names and leave its folder."""
    usual = USUAL_KS.get(options.action, [DEFAULT_K])
    context = open_stage(argparse.Namespace(**{**vars(options), "k": options.k or usual}), STAGE)
    ACTIONS[options.action](context, subject(context))
