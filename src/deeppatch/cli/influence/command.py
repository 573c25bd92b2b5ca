"""influence: find the features of the last layer that are most influential for each class."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import DEFAULT_K, StageOptions
from deeppatch.errors import UserError

STAGE = "influence"
DESCRIPTION = "Influence: find the k features of the last layer that are most often strong in each class's images."
EXAMPLE = "-m resnet20a -d cifar10 -k 5 10 20"
REPAIR = False
KS = (DEFAULT_K, 10, 20)
ARTIFACTS = (
    Folder(
        "influence[-kK][-augment]",
        "the influential features of each class, one folder for each `-k`",
        {
            "indices.json": "the k features of each class",
            "influence.json": "how often and how strongly they respond, and how many a given file has in common",
            "influence.csv": "all features of each class with frequency, mean share and rank",
            "influence.png": "a heat map of frequencies, by class and feature",
            "overlap.png": "a heat map of the number of features that two classes share",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of influence."""

    k: list[int] = field(default_factory=lambda: list(KS))
    compare: list[Path] = field(default_factory=list)
    augment: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("influence")
    group.add_argument(
        "-k", type=int, nargs="+", default=list(KS), metavar="K", help="features per class (default: 5 10 20)"
    )
    group.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="index files {class: [features]} to compare with, each with the extraction of its own k",
    )
    group.add_argument(
        "--augment",
        action="store_true",
        help="extract from training images that are cropped and mirrored once, by seed (default: as they are)",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = [f"-k {k}: give at least 1 feature" for k in options.k if k < 1]
    return messages + (
        [f"-k {' '.join(map(str, options.k))}: give each number once"] * (len(set(options.k)) < len(options.k))
    )


def run(options: Options) -> None:
    """Extract features from all training images, including val, and write one folder for each k."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.influence import inputs, report
    from deeppatch.decomposition.influence import measure
    from deeppatch.storage import check_place

    context = open_stage(options, STAGE)
    last = inputs.last_layer(context)
    width = last.layer.in_features
    too_many = [k for k in options.k if k > width]
    if too_many:
        raise UserError(f"-k {too_many[0]}: {options.model} has {width} features; give at most {width}")
    given = inputs.given_sets(context, last)
    if options.augment and not context.source.augment:
        raise UserError(f"--augment: a crop or mirror image would change the class in {options.dataset}; leave it out")
    for k in options.k:
        check_place(context.folder(STAGE, k=k))
    everything = last.training_features(augment_seed=options.seed if options.augment else None)
    for influence in measure(everything, len(context.source.classes), options.k):
        report.write_influence(context, influence, len(everything), given)
