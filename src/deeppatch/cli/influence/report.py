"""The report of influence for each k: indices, numbers, a table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from deeppatch.cli.context import Context
from deeppatch.decomposition import index_sets
from deeppatch.decomposition.influence import Influence
from deeppatch.progress import info
from deeppatch.report import plots
from deeppatch.stage import Stage


def write_influence(context: Context, influence: Influence, images: int, given: list[tuple[Path, Tensor]]) -> None:
    """Write indices, numbers, table and plots of one k."""
    facts = {**context.stage.facts, "settings": {**context.stage.facts["settings"], "k": influence.k}}
    stage = Stage(context.options.output_dir, context.folder("influence", k=influence.k), facts)
    stage.inputs.update(context.stage.inputs)
    indices, names = influence.indices(), context.source.classes
    width = influence.frequency.shape[1]
    compared = compare(stage, indices, given, width)
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
    shared = index_sets.overlap(indices, indices, width)
    stage.write("overlap.png", plots.overlap(shared.tolist(), names, f"features that two classes share: {title}"))
    stage.finish()
    held = 100 * influence.mass.mean().item()
    info(f"k = {influence.k}: the strongest hold {held:.1f} % of the responses; written to {stage.folder}")


def compare(stage: Stage, indices: Tensor, given: list[tuple[Path, Tensor]], width: int) -> dict[str, Any]:
    """Return by file how many features of each class are also those of the given files of this k."""
    common_features: dict[str, Any] = {}
    for path, other in given:
        if other.shape[1] == indices.shape[1]:
            stage.inherit(path, path.read_bytes())
            common_features[path.name] = index_sets.overlap(indices, other, width).diagonal().tolist()
            per_class = " ".join(map(str, common_features[path.name]))
            info(f"k = {indices.shape[1]}: in common with {path.name}, by class: {per_class}")
    return common_features


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
