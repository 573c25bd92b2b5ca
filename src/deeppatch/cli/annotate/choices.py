"""The options of a selection that HybridRepair's studies vary, and the names of features."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from deeppatch.cli.arguments import add_number
from deeppatch.cli.options import ANNOTATE
from deeppatch.errors import closest
from deeppatch.hybrid.choice_settings import tau_problem
from deeppatch.hybrid.names import BY_FEATURES, CORESET_STARTS, TAUS

FEATURES = ("penultimate", "ssl")
GIVEN = "file"  # what stands for a name where a checkpoint is given
ENDINGS = (".safetensors", ".pt", ".pth", ".tar", ".t7", ".ckpt")
# the methods that read each option
READERS = {
    "tau": ("hybrid",), "cluster_size": ("hybrid",), "coreset_start": ("coreset",), "features": BY_FEATURES,
}  # fmt: skip


def features_or_file(text: str) -> str:
    """Accept the name of features or the path of a file, as argparse wants it."""
    if text in (*FEATURES, GIVEN) or os.sep in text or text.endswith(ENDINGS) or Path(text).is_file():
        return text
    known = f"choose from {', '.join(FEATURES)}, or give a checkpoint of MoCo v3"
    raise argparse.ArgumentTypeError(f"invalid choice: {text}{closest(text, FEATURES)}; {known}")


def tau(text: str) -> float | str:
    """Return a threshold of entropy, a number or a name, as argparse wants it."""
    value: float | str = text
    if text not in TAUS:
        try:
            value = float(text)
        except ValueError:
            value = text
    if problem := tau_problem(value):
        raise argparse.ArgumentTypeError(f"{text}: {problem}")
    return value


def add_studied(group: argparse._ArgumentGroup) -> None:
    """Add the options."""
    add_number(
        group,
        "--tau",
        kind=tau,
        default=ANNOTATE["tau"],
        what="hybrid: largest entropy, from 0 to 1, of an image that is used without a label: a number; auto, the mean "
        "where images lie as far from the training images as most; or mean, that of the pool (default: auto)",
    )
    add_number(
        group,
        "--cluster_size",
        default=ANNOTATE["cluster_size"],
        what="hybrid: average number of images in a cluster (default: %(default)s)",
    )
    group.add_argument(
        "--coreset_start",
        choices=list(CORESET_STARTS),
        default=ANNOTATE["coreset_start"],
        help="coreset: start from the training images, or as published from the pool's first image (default: train)",
    )
    add_number(
        group,
        "--rounds",
        default=ANNOTATE["rounds"],
        what="buy the labels in N rounds, with --bias: annotate chooses those of the first, and relearn those of each "
        "further one by the network that the labels so far have repaired (default: 1)",
    )
    add_number(group, "--step", what="the same, said by the number of labels of a round (default: those of --rounds)")


def problems_of_studied(options: Any) -> list[str]:
    """Return the problems with these options."""
    messages = [
        f"--{name} {getattr(options, name)} can only be used with --method {', '.join(methods)}"
        for name, methods in READERS.items()
        if getattr(options, name) != ANNOTATE[name] and options.method not in methods
    ]
    for name in ("cluster_size", "rounds", "step"):
        value = getattr(options, name)
        messages += [f"--{name} {value}: give at least 1"] * (value is not None and value < 1)
    if options.budget.isdecimal() and 0 < int(options.budget) < options.rounds:
        messages.append(f"--rounds {options.rounds}: give at most the {options.budget} labels of --budget")
    rounds, step = options.rounds > 1, options.step is not None
    messages += ["--rounds and --step exclude each other: choose one"] * (rounds and step)
    messages += ["--rounds and --step need an oracle: give --bias"] * ((rounds or step) and not options.bias)
    if options.features == GIVEN and options.features_file is None:
        messages.append(f"--features {GIVEN}: name the checkpoint with --features_file")
    return messages
