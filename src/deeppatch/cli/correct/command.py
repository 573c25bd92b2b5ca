"""correct: train a patch for the suspicious filters, or correct the whole network by one of several methods."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeppatch.cli.correct.peers import EPOCHS, FOLDERS, PeerOptions, add_peer_arguments, peer_problems
from deeppatch.cli.corrections import OF_CORRECTION, PEER_OPTIONS
from deeppatch.cli.declared import Folder
from deeppatch.cli.naming import given_options
from deeppatch.patching.names import INITS, STREAMS
from deeppatch.retrain.names import CONDITIONS, STATISTICS, STATISTICS_OF_PATCH

STAGE = "correct"
DESCRIPTION = (
    "Correct: train a patch for the most suspicious filters on degraded images, fine-tune everything, or take one "
    "of the baselines that cost less or of the methods of other papers."
)
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
RANKS = True
TRAINED = {
    "weights.safetensors": "the weights of the best epoch on val",
    "history.csv": "loss and accuracy on val after each epoch",
    "metrics.json": "numbers of images, epochs and passes, the best epoch, its accuracy on val, and stored bytes",
}
ARTIFACTS = (
    Folder(
        "correct-finetune",
        "the fine-tuned network, with `-c finetune`",
        TRAINED,
    ),
    Folder(
        "correct-norms[-statistics]",
        "the network with normalisation layers that were trained, or whose statistics are new, with `-c norms`",
        {name: about for name, about in TRAINED.items() if name != "history.csv"},
        {"history.csv": f"{TRAINED['history.csv']}, but with `--epochs 0`"},
    ),
    Folder("correct-surgical", "the network of which one block was trained, with `-c surgical`", TRAINED),
    Folder(
        "correct-interpolate",
        "the network between the base and the fine-tuned one, with `-c interpolate`",
        {
            "weights.safetensors": "the weights of the point that was chosen on val",
            "curve.csv": "accuracy of all points on val and test, clean and at each level, and the bound on val's loss",
            "metrics.json": "the point that was chosen, its accuracy and its bound on val, passes, and stored bytes",
        },
    ),
    Folder(
        "correct-bank",
        "a bank of normalisation statistics, one for each condition, with `-c bank`",
        {
            "bank.safetensors": "a scale and a shift of each channel by condition, and the selector",
            "metrics.json": "the conditions, the bound on the loss of clean accuracy, passes, and stored bytes",
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
    Folder(
        "correct-statistics",
        "a patch whose normalisation statistics are those of unlabelled images, with `-c statistics`",
        {
            "patch.safetensors": "the patch: the filters of the one that it was made of, and new statistics",
            "metrics.json": "the patched filters, the number of the images, passes, and stored bytes",
        },
    ),
    *FOLDERS,
)


@dataclass(frozen=True, kw_only=True)
class Options(PeerOptions):
    """The options of correct beside those that DeepPatch's stages share: what some corrections have of their own."""

    passes: int | None = None
    filter_seed: int | None = None
    init: str = "original"
    train_on: str = "degraded"
    statistics: str = "linear"
    conditions: str = "level"
    block: int = 1
    max_clean_drop: float | None = None
    unlabelled: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("correct")
    group.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="train on N images, each time that one is, in whole batches, however many epochs that takes; for equal "
        "budgets (default: as many as --epochs takes)",
    )
    group.add_argument(
        "--filter_seed",
        type=int,
        metavar="N",
        help="patch: seed of filters that are drawn at random, with -f random or --susp_side random, where splits and "
        "training shall have the same seed (default: that of --seed)",
    )
    group.add_argument(
        "--init",
        choices=list(INITS),
        default="original",
        help="patch: where the new filters start, at those that they replace, or drawn, as in the published code "
        "(default: original)",
    )
    group.add_argument(
        "--train_on",
        choices=list(STREAMS),
        default="degraded",
        help="patch: the images it is trained on, half of them clean and half degraded, all clean, or the worst "
        "versions by the search of sensei, with its options (default: degraded)",
    )
    group.add_argument(
        "--statistics",
        choices=list(STATISTICS),
        default="linear",
        help="interpolate: running statistics between those of both networks, estimated again, or kept from the base "
        "(default: linear)",
    )
    group.add_argument(
        "--conditions",
        choices=list(CONDITIONS),
        default="level",
        help="bank: what has statistics of its own, each level or each type of the degradation (default: level)",
    )
    group.add_argument(
        "--block",
        type=int,
        default=1,
        metavar="K",
        help="surgical: which block to train; a block ends where the maps are halved (default: 1, the first)",
    )
    group.add_argument(
        "--max_clean_drop",
        type=float,
        metavar="P",
        help="interpolate and bank: bound on the loss of clean accuracy, in points, shown on val with 95 %% confidence "
        "(default: 1 for interpolate, 0.1 for bank)",
    )
    group.add_argument(
        "--unlabelled",
        type=Path,
        metavar="DIR",
        help="statistics: a folder of images without labels, such as the field's, whose statistics a patch shall have",
    )
    add_peer_arguments(parser)


def preset(given: Any) -> dict[str, object]:
    """Return the defaults that -c sets in place of the usual ones."""
    return {"crt_epoch": EPOCHS[given.crt_method]} if given.crt_method in EPOCHS else {}


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = [
        f"--{name} can only be used with -c {' and '.join(methods)}, not with {options.crt_method}"
        for name, methods in OF_CORRECTION.items()
        if options.crt_method not in methods and name in given_options(options)
    ]
    if options.passes is not None and options.passes < 1:
        messages.append(f"--passes {options.passes}: give at least the number of images in a batch")
    if options.passes is not None and options.crt_epoch == 0:
        messages.append(
            f"--passes {options.passes} and --epochs 0 exclude each other: train, or estimate statistics only"
        )
    if options.filter_seed is not None and options.fs_method != "random" and options.susp_side != "random":
        messages.append("--filter_seed draws nothing here: add -f random or --susp_side random")
    if options.init != "original" and options.crt_type != "replace":
        messages.append(f"--init {options.init} can only be used with --crt_type replace: correction units are new")
    of_sensei = [name for name in PEER_OPTIONS["sensei"] if name in given_options(options)]
    if options.crt_method == "patch" and options.train_on != "sensei":
        messages += [f"--{name} can only be used with -c sensei or --train_on sensei" for name in of_sensei]
    if options.block < 1:
        messages.append(f"--block {options.block}: give a number from 1 on; blocks are counted from the input")
    if options.max_clean_drop is not None and not 0 <= options.max_clean_drop <= 100:
        messages.append(f"--max_clean_drop {options.max_clean_drop}: give points from 0 to 100")
    if options.crt_method == STATISTICS_OF_PATCH and options.unlabelled is None:
        messages.append(f"-c {STATISTICS_OF_PATCH} needs images: give a folder of them with --unlabelled")
    return messages + peer_problems(options)


def run(options: Options) -> None:
    """Make the correction that -c names and write it for evaluate."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.correct.report import report
    from deeppatch.cli.correct.runners import RUNNERS
    from deeppatch.cli.predecessors import base_model

    context = open_stage(options, STAGE)
    correction = RUNNERS[options.crt_method](context, base_model(context))
    if correction is not None:
        report(context, correction)
