"""The options of the methods of other papers that correct takes, and the folders that they leave."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import RepairOptions
from deeppatch.retrain.names import PEERS, SELECTIONS, STRATEGIES

# published numbers of epochs that differ from fine-tuning's
EPOCHS = {"robot": 40, "gini": 40}
WEIGHTS, HISTORY, METRICS = "weights.safetensors", "history.csv", "metrics.json"
TRAINED = {
    WEIGHTS: "the weights of the best epoch on val",
    HISTORY: "loss and accuracy on val after each epoch",
    METRICS: "numbers of images, epochs and passes, the best epoch, its accuracy on val, and what the method found",
}
SELECTION = {"selection.json": "the chosen images of train: index, level and score of each, best first"}
FOLDERS = (
    Folder("correct-sensei", "the network trained on the worst of several versions, with `-c sensei`", TRAINED),
    Folder(
        "correct-apricot",
        "the network whose weights moved towards those of reduced models, with `-c apricot`",
        {
            WEIGHTS: "the weights that were best on val",
            "steps.csv": "each step: its images, and accuracy on val after it and after the training that followed",
            METRICS: "numbers of images, steps and passes, and the accuracy on val",
        },
        {HISTORY: "loss and accuracy on val after each epoch, if a step was better on val than the base"},
    ),
    Folder("correct-robot", "the network trained on images of extreme loss, with `-c robot`", {**TRAINED, **SELECTION}),
    Folder("correct-gini", "the network trained on images it was unsure of, with `-c gini`", {**TRAINED, **SELECTION}),
    Folder("correct-augmix", "the network trained on mixtures of clean images, with `-c augmix`", TRAINED),
)


@dataclass(frozen=True, kw_only=True)
class PeerOptions(RepairOptions):
    """The options that methods of other papers have of their own."""

    popsize: int = 10
    robust_threshold: float = 1e-3
    crossover_prob: float = 0.4
    rdlm: int = 20
    rdlm_images: int = 10_000
    rdlm_epoch: int = 40
    fix_steps: int = 100
    eta: float = 1e-3
    strategy: int = 2
    select: str = "best"
    select_images: int | None = None
    select_only: bool = False
    select_half: bool = False
    augmix_weight: float = 12.0
    augmix_blur: bool = False


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of these methods."""
    group = parser.add_argument_group(
        "methods of other papers",
        f"-c {', '.join(PEERS)}; robot and gini are trained for 40 epochs where --epochs is not given",
    )
    for name, kind, default, about in NUMBERS:
        shown = "" if default is None else f" (default: {default:g})"
        metavar = "N" if kind is int else "X"
        group.add_argument(name, type=kind, default=default, metavar=metavar, help=about + shown)
    group.add_argument(
        "--strategy",
        type=int,
        choices=list(STRATEGIES),
        default=2,
        help="apricot: move towards models that are right (2), away from those that are wrong (3), or both (1) "
        "(default: 2)",
    )
    group.add_argument(
        "--select",
        choices=list(SELECTIONS),
        default="best",
        help="robot: images of smallest and of largest first-order loss, or of all sections of its range "
        "(default: best)",
    )
    for name, about in FLAGS.items():
        group.add_argument(name, action="store_true", help=about)


NUMBERS = (
    ("--popsize", int, 10, "sensei: how many versions of each image are compared; 1 is fine-tuning"),
    (
        "--robust_threshold",
        float,
        1e-3,
        "sensei -n spatial: loss below which an image is not searched in the next epoch",
    ),
    ("--crossover_prob", float, 0.4, "sensei -n spatial: probability that versions are crossed over, and not mutated"),
    ("--rdlm", int, 20, "apricot: number of reduced models"),
    ("--rdlm_images", int, 10_000, "apricot: training images of each reduced model"),
    ("--rdlm_epoch", int, 40, "apricot: epochs of each reduced model"),
    ("--fix_steps", int, 100, "apricot: number of batches of the failing images"),
    ("--eta", float, 1e-3, "apricot: how far the weights move for a failing image"),
    (
        "--select_images",
        int,
        None,
        "robot and gini: how many images are chosen (default: robot 10,000, gini a tenth of train)",
    ),
    ("--augmix_weight", float, 12.0, "augmix: weight of the divergence; 0 trains without mixtures"),
)
FLAGS = {
    "--select_only": "robot and gini: train on the chosen images alone, not together with all clean ones",
    "--select_half": "robot and gini: epochs as long as train, half of them clean and half chosen images",
    "--augmix_blur": "augmix: mix the images that finetune trains on, clean or degraded, instead of clean ones",
}


def peer_problems(options: PeerOptions) -> list[str]:
    """Return the problems with these options."""
    above = ("rdlm", "rdlm_images", "rdlm_epoch", "fix_steps", "robust_threshold", "select_images")
    numbers = {name: getattr(options, name) for name in above}
    messages = [
        f"--{name} {value}: give a number above 0"
        for name, value in numbers.items()
        if value is not None and not 0 < value < math.inf
    ]
    if not 1 <= options.popsize <= 100:
        messages.append(f"--popsize {options.popsize}: give a number from 1 to 100")
    for name in ("crossover_prob", "eta"):
        if not 0 <= (value := getattr(options, name)) <= 1:
            messages.append(f"--{name} {value}: give a number from 0 to 1")
    if not 0 <= options.augmix_weight < math.inf:
        messages.append(f"--augmix_weight {options.augmix_weight}: give 0 or more")
    if options.select_only and options.select_half:
        messages.append("--select_only and --select_half exclude each other: choose one")
    return messages
