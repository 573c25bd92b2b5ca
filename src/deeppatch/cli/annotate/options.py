"""The options that annotate and relearn share, what they mean, and the name of the folder that annotate leaves."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction

from deeppatch.cli.biased import add_bias
from deeppatch.cli.options import ANNOTATE
from deeppatch.errors import UserError
from deeppatch.hybrid.selection_methods import BY_FEATURES, METHODS
from deeppatch.zoo.architectures import ARCHITECTURES

SPELLED = re.compile(r"\d+(\.\d+)?%|\d+")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is chosen, and how."""
    group = parser.add_argument_group("annotate")
    add_bias(group)
    group.add_argument(
        "--method",
        choices=list(METHODS),
        default=ANNOTATE["method"],
        metavar="NAME",
        help=f"how images are chosen: {', '.join(METHODS)} (default: {ANNOTATE['method']})",
    )
    group.add_argument(
        "--budget",
        default=ANNOTATE["budget"],
        metavar="N",
        help="labels to buy, as 350 or as a share of the pool, as 1%% (default: 1%%)",
    )
    group.add_argument(
        "--features",
        choices=["penultimate", "ssl"],
        default=ANNOTATE["features"],
        help="what coreset and hybrid compare images by: the model's last features, or those of an encoder that is "
        "trained here on images alone (default: penultimate)",
    )
    group.add_argument(
        "--encoder",
        choices=sorted(ARCHITECTURES),
        default=ANNOTATE["encoder"],
        metavar="NAME",
        help=f"network of the zoo to train for --features ssl (default: {ANNOTATE['encoder']})",
    )
    group.add_argument(
        "--encoder_epochs",
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
        help="AugMix views of each image, beside itself (default: 8)",
    )


def selection_problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with those options."""
    found = []
    if not SPELLED.fullmatch(options.budget):
        found.append(f"--budget {options.budget}: give a number of labels, or a share of the pool as 1%")
    elif _amount(options.budget) <= 0 or (options.budget.endswith("%") and _amount(options.budget) > 100):
        found.append(f"--budget {options.budget}: give at least 1 label, at most 100%")
    for name in ("views", "encoder_epochs"):
        found += [f"--{name} {getattr(options, name)}: give at least 1"] * (getattr(options, name) < 1)
    if options.features != "penultimate" and options.method not in BY_FEATURES:
        found.append(f"--features {options.features} goes with --method {' or '.join(BY_FEATURES)}")
    if not options.bias and not options.dataset.startswith("folder:"):
        found.append(f"-d {options.dataset}: give --bias to simulate a pool, or folder:PATH with images in PATH/pool")
    return found


def affordable(budget: str, pool: int) -> int:
    """Return how many labels of a pool of so many images a budget buys: a share is rounded down."""
    count = int(_amount(budget) * pool / 100) if budget.endswith("%") else int(budget)
    if not 1 <= count <= pool:
        raise UserError(f"--budget {budget} is {count} of {pool} images in the pool; give 1 to {pool}")
    return count


def _amount(budget: str) -> Fraction:
    return Fraction(budget.removesuffix("%"))
