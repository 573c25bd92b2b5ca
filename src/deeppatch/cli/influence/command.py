"""influence: find the features of the last layer that carry each class's decision."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from deeppatch.artifacts import Stage, read_given
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.features import Subject, subject
from deeppatch.cli.options import DEFAULT_K
from deeppatch.decompose import index_sets
from deeppatch.decompose.influence import Influence, measure
from deeppatch.errors import UserError
from deeppatch.progress import info
from deeppatch.report import plots

STAGE = "influence"
DESCRIPTION = "Influence: find the k features of the last layer that are most often strong in each class's images."
EXAMPLE = "-m resnet20a -d cifar10 -k 5 10 20"
REPAIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("influence")
    group.add_argument(
        "-k", type=int, nargs="+", default=[DEFAULT_K, 10, 20], metavar="K", help="features a class (default: 5 10 20)"
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
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = [f"-k {k}: give at least 1 feature" for k in options.k if k < 1]
    return found + (
        [f"-k {' '.join(map(str, options.k))}: give each number once"] * (len(set(options.k)) < len(options.k))
    )


def run(options: argparse.Namespace) -> None:
    """Extract from all training images, val included, and leave one folder for each k."""
    context = open_stage(options, STAGE)
    model = subject(context)
    classes, width = len(context.source.classes), model.whole.in_features
    too_many = [k for k in options.k if k > width]
    if too_many:
        raise UserError(f"-k {too_many[0]}: {options.model} has {width} features; give at most {width}")
    given = [(path, index_sets.parse(read_given(path), path, classes, width)) for path in options.compare]
    odd = [path for path, indices in given if indices.shape[1] not in options.k]
    if odd:
        raise UserError(f"--compare {odd[0]} has another k; add it to -k")
    if options.augment and not context.source.augment:
        raise UserError(f"--augment: a crop or mirror image would change the class in {options.dataset}; leave it out")
    everything = model.training_features(augment=options.augment)
    for influence in measure(everything, classes, options.k):
        leave(context, model, influence, len(everything), given)


def leave(
    context: Context, model: Subject, influence: Influence, images: int, given: list[tuple[Path, Tensor]]
) -> None:
    """Write indices, figures, table and plots of one k."""
    facts = {**context.stage.facts, "settings": {**context.stage.facts["settings"], "k": influence.k}}
    stage = Stage(context.options.output_dir, context.folder(STAGE, k=influence.k), facts)
    stage.inputs.update(context.stage.inputs)
    indices, names = influence.indices(), context.source.classes
    compared = compare(stage, indices, given, model.whole.in_features)
    stage.write("indices.json", index_sets.to_json(indices))
    stage.write_json(
        "influence.json",
        {
            "k": influence.k,
            "training_images": images,
            "limit": context.options.limit,
            "augmented": context.options.augment,
            "mass": influence.mass.tolist(),
            "frequency_of_chosen": influence.frequency.gather(1, indices).tolist(),
            "compared": compared,
        },
    )
    stage.write_table("influence.csv", table(influence, indices, names))
    title = f"{context.options.model} on {context.source.name}, k = {influence.k}, {images} training images"
    stage.write("influence.png", plots.influence(influence.frequency.tolist(), indices.tolist(), names, title))
    shared = index_sets.overlap(indices, indices, model.whole.in_features)
    stage.write("overlap.png", plots.overlap(shared.tolist(), names, f"features that two classes share: {title}"))
    stage.finish()
    held = 100 * influence.mass.mean().item()
    info(f"k = {influence.k}: the strongest hold {held:.1f} % of the responses; written to {stage.folder}")


def compare(stage: Stage, indices: Tensor, given: list[tuple[Path, Tensor]], width: int) -> dict[str, Any]:
    """Say how many features of each class are also those of the given files of this k."""
    found: dict[str, Any] = {}
    for path, other in given:
        if other.shape[1] == indices.shape[1]:
            stage.inherit(path, path.read_bytes())
            found[path.name] = index_sets.overlap(indices, other, width).diagonal().tolist()
            per_class = " ".join(map(str, found[path.name]))
            info(f"k = {indices.shape[1]}: in common with {path.name}, by class: {per_class}")
    return found


def table(influence: Influence, indices: Tensor, names: tuple[str, ...]) -> pd.DataFrame:
    """Return one row for each class and feature: frequency, mean share, and the rank of those that were chosen."""
    classes, width = influence.frequency.shape
    rank = torch.zeros(classes, width, dtype=torch.long)
    rank.scatter_(1, indices, torch.arange(1, influence.k + 1).expand(classes, -1))
    return pd.DataFrame(
        {
            "class": [name for name in names for _ in range(width)],
            "feature": list(range(width)) * classes,
            "frequency": influence.frequency.flatten(),
            "mean_share": influence.share.flatten(),
            "rank": rank.flatten(),
        }
    )
