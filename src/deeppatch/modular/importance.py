"""Measure the importance of each kernel to each class by its response to confidently classified images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeppatch.graph.hooks import hooked_before
from deeppatch.modular.layers import Layer
from deeppatch.progress import info, track

CONFIDENT = 0.9  # images count if their class has at least this probability
FALLBACK_IMAGES = 50  # images that count if no image is classified confidently


@torch.inference_mode()
def importances(network: nn.Module, layers: Sequence[Layer], x: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Return for each layer the mean L1 norm (classes, kernels) of kernels' maps over confident images of each class.

    An image (N, C, H, W) of class c counts where the network gives c a probability of at least 0.9 (Qi et al., ASE
    2022); if there is none, the 50 likeliest images of the class count, which is logged. The map is the input of the
    layer's last reader: after activation, pooling and residual sums.
    """
    maps: dict[int, Tensor] = {}
    norms: list[list[Tensor]] = [[] for _ in layers]
    probabilities = []
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            for name, inputs in layer.readers.items():

                def record(
                    _module: nn.Module,
                    read: tuple[Tensor, ...],
                    index: int = index,
                    name: str = name,
                    inputs: int = inputs,
                ) -> None:
                    wide = read[0].abs().flatten(2).sum(2) if read[0].ndim > 2 else read[0].abs()
                    own = wide[:, layers[index].span(name)]
                    maps[index] = own.unflatten(1, (-1, inputs)).sum(2)  # the last reader overwrites earlier ones

                stack.enter_context(hooked_before(network.get_submodule(name), record))
        batches = x.split(256)
        for batch in track(batches, len(batches), "importance"):
            probabilities.append(network(batch).softmax(1))
            for index, values in maps.items():
                norms[index].append(values)
    own = torch.cat(probabilities).gather(1, labels.unsqueeze(1)).squeeze(1)
    chosen = [_confident_images(own, labels == label, label) for label in range(classes)]
    return [torch.stack([torch.cat(parts)[rows].mean(0) for rows in chosen]) for parts in norms]


def _confident_images(probability: Tensor, of_class: Tensor, label: int) -> Tensor:
    rows = (of_class & (probability >= CONFIDENT)).nonzero().squeeze(1)
    if len(rows):
        return rows
    info(f"class {label}: no image has a probability of {CONFIDENT} or more; the {FALLBACK_IMAGES} likeliest are taken")
    rows = of_class.nonzero().squeeze(1)
    return rows[probability[rows].argsort(descending=True)[:FALLBACK_IMAGES]]


def orders(importance: Sequence[Tensor], label: int) -> list[NDArray[np.int64]]:
    """Return for each layer its kernels by importance to class `label`, most important first, ties by index."""
    return [values[label].argsort(descending=True, stable=True).cpu().numpy() for values in importance]
