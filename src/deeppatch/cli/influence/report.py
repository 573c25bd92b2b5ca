"""The report of influence for each k: indices, numbers, a table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    stage.write_table("influence.csv", influence.table(names))
    title = f"{context.options.model} on {context.source.name}, k = {influence.k}, {images} training images"
    stage.write("influence.png", plots.influence(influence.frequency.tolist(), indices.tolist(), names, title))
    shared = index_sets.overlap(indices, indices, width)
    stage.write("overlap.png", plots.overlap(shared.tolist(), names, f"features that two classes share: {title}"))
    stage.finish()
    held = 100 * influence.mass.mean().item()
    info(f"k = {influence.k}: the strongest hold {held:.1f} % of the responses; written to {stage.folder}")


def compare(stage: Stage, indices: Tensor, given: list[tuple[Path, Tensor]], width: int) -> dict[str, Any]:
    """Return by file how many features of each class are also those of the given files of this k."""
    compared: dict[str, Any] = {}
    for path, other in given:
        if other.shape[1] == indices.shape[1]:
            stage.inherit(path, path.read_bytes())
            compared[path.name] = index_sets.common_features(indices, other, width).tolist()
            per_class = " ".join(map(str, compared[path.name]))
            info(f"k = {indices.shape[1]}: in common with {path.name}, by class: {per_class}")
    return compared
