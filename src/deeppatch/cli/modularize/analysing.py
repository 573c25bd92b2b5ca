"""What modularize measures before it searches: how important kernels are, and which layers are sensitive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, fx

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.data.splits import subset
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import convolutions
from deeppatch.modular import sensitivity
from deeppatch.modular.importance import importances
from deeppatch.modular.layers import Layer, find
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


@dataclass
class Analysis:
    """A classifier, its network in inference form, that network's layers, and how important their kernels are."""

    CHECKPOINTS: ClassVar[tuple[str, str]] = ("analysis.pt", "checkpoint.pt")

    context: Context
    model: Classifier
    network: fx.GraphModule
    layers: list[Layer]
    importance: list[Tensor]
    sensitivity: Tensor

    @property
    def classes(self) -> int:
        """How many classes, and so modules, there are."""
        return len(self.context.source.classes)

    @property
    def sensitive(self) -> list[int]:
        """The sensitive layers, by place."""
        return sensitivity.sensitive(self.sensitivity, *self.context.options.sensitive)

    def inputs(self, images: Images) -> Tensor:
        """Return images as the network reads them, normalised, (N, C, H, W)."""
        x = self.model.normalize(torch.cat([pixels for pixels, _labels in views.clean(images, 1024)]))
        return x.contiguous(memory_format=torch.channels_last)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return one of the two checkpoints of the stage."""
        return self.context.checkpoint(name, base=state_digest(self.model.state_dict()))


def analysed(context: Context, model: Classifier) -> Analysis:
    """Measure importance and sensitivity on val, print and write the table; what an interrupted run has is read."""
    options, val = context.options, context.splits.val
    network = folded(model.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = find(network, model.normalize(context.example))
    if fixed := convolutions(network).keys() - {name for layer in layers for name in layer.convs}:
        info(f"{len(fixed)} convolutions keep all of their kernels: they are added to what no convolution makes")
    analysis = Analysis(context, model, network, layers, [], torch.zeros(0))
    checkpoint = analysis.checkpoint("analysis.pt")
    saved = checkpoint.load() or {}
    analysis.importance = saved.get("importance") or importances(
        network, layers, analysis.inputs(val), val.labels, analysis.classes
    )
    some = subset(val, options.sensitivity_images, options.seed, context.source.name)

    def save(table: Tensor) -> None:
        checkpoint.save({"importance": analysis.importance, "sensitivity": table})

    analysis.sensitivity = sensitivity.measure(
        network,
        layers,
        analysis.importance,
        analysis.inputs(some),
        some.labels,
        save=save,
        table=saved.get("sensitivity"),
    )
    table = pd.DataFrame(100 * analysis.sensitivity, columns=[f"{ratio:g}" for ratio in sensitivity.RATIOS])
    table.insert(0, "layer", [layer.name for layer in layers])
    table["sensitive"] = [place in analysis.sensitive for place in range(len(layers))]
    context.stage.write_table("sensitivity.csv", table)
    info(f"composed accuracy in percent when modules keep a share of one layer, {len(some)} val images:")
    print(table.to_string(index=False, float_format="%.1f"))
    return analysis
