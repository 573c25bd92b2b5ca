"""Measurements before a search: the importance of kernels to classes, and the sensitivity of layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, fx, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.splits import subset
from deeppatch.errors import UserError
from deeppatch.evaluation import check_classifier
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.tracing import Untraceable
from deeppatch.modular import sensitivity
from deeppatch.modular.importance_places import measured_importance
from deeppatch.modular.layers import Layer, layers_to_split
from deeppatch.modular.modules import as_classifier
from deeppatch.progress import info
from deeppatch.runtime import to_channels_last
from deeppatch.zoo.classifier import Classifier, device_of


@dataclass(frozen=True)
class Analysis:
    """A classifier to split, with measurements on val.

    Args:
        model: A copy of the classifier in eval mode.
        network: Its network in inference form.
        layers: The network's layers of kernels.
        importance: For each layer, the importance of its kernels to the classes, (classes, kernels).
        sensitivity: (layers, 10): the composed accuracy, in [0, 1], when modules keep 0.1, 0.2, ..., 1 of one layer.
    """

    model: Classifier
    network: fx.GraphModule
    layers: list[Layer]
    importance: list[Tensor]
    sensitivity: Tensor

    @property
    def classes(self) -> int:
        """The number of classes, which is that of modules."""
        return len(self.importance[0])

    @property
    def convolutions_per_kernel(self) -> Tensor:
        """The number of convolutions that each kernel belongs to, float (kernels,)."""
        return torch.cat([torch.full((layer.kernels,), float(len(layer.convs))) for layer in self.layers])

    def sensitive(self, drop: float = 0.05, share: float = 0.5) -> list[int]:
        """Return the layers whose accuracy falls by more than `drop` when modules keep a `share` of kernels."""
        return sensitivity.sensitive(self.sensitivity, drop, share)

    def table(self, drop: float = 0.05, share: float = 0.5) -> pd.DataFrame:
        """Return a row for each layer: `layer`, its accuracy in percent for each share of kernels, and `sensitive`."""
        found = pd.DataFrame(100 * self.sensitivity, columns=[f"{ratio:g}" for ratio in sensitivity.RATIOS])
        found.insert(0, "layer", [layer.name for layer in self.layers])
        sensitive = self.sensitive(drop, share)
        found["sensitive"] = [index in sensitive for index in range(len(self.layers))]
        return found

    def inputs(self, images: Images) -> Tensor:
        """Return normalised images (N, C, H, W)."""
        x = self.model.normalize(torch.cat([pixels for pixels, _labels in views.clean(images, 1024)]))
        return x.contiguous(memory_format=torch.channels_last)


def analyse(
    model: nn.Module,
    data: Data,
    *,
    images: int = 1000,
    importance: str = "pooled",
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> Analysis:
    """Measure importance on val, and sensitivity on `images` of it; with a checkpoint, layer by layer.

    `importance` says where kernels' maps are read (`measured_importance`); a search that is to be as published takes
    its own place, for example `GeneticSearch().importance`. UserError for a network that cannot be split (see
    `layers_to_split`).
    """
    model = copy.deepcopy(as_classifier(model)).eval()
    data = data.to(device_of(model))
    check_classifier(model, data.example, len(data.classes))
    try:
        network = folded(model.network)
    except Untraceable as error:
        raise UserError(f"this network cannot be split: {error}; use one of the zoo") from error
    to_channels_last(network)
    layers = layers_to_split(network, model.normalize(data.example))
    if fixed := convolutions(network).keys() - {name for layer in layers for name in layer.convs}:
        info(f"{len(fixed)} convolutions keep all of their kernels: other tensors are added to their outputs")
    saved = (checkpoint.load(importance=[Tensor], sensitivity=Tensor) if checkpoint else None) or {}
    analysis = Analysis(model, network, layers, [], torch.zeros(0))
    values = saved.get("importance") or measured_importance(
        importance, network, layers, (analysis.inputs(data.val), data.val.labels), len(data.classes), seed
    )
    sampled = subset(data.val, images, seed, data.name)

    def save(table: Tensor) -> None:
        if checkpoint:
            checkpoint.save({"importance": values, "sensitivity": table})

    table = sensitivity.measure(
        network,
        layers,
        values,
        analysis.inputs(sampled),
        sampled.labels,
        save=save,
        table=saved.get("sensitivity"),
    )
    return Analysis(model, network, layers, values, table)
