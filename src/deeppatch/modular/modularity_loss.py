"""Train a network so that it can be split into small modules: a loss on which kernels the images of each class use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.distributed.data_parallel import Batch
from deeppatch.graph.hooks import eval_mode, hooked_before
from deeppatch.modular.layers import Layer, layers_to_split
from deeppatch.modular.names import MODULARITY
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe
from deeppatch.training import History
from deeppatch.zoo.classifier import device_of, network_of, normalize_of

BEGIN, WHOLE = 0.25, 0.4  # the shares of all batches at which the weights begin to rise from zero, and are reached


@dataclass(frozen=True)
class ModularityWeights:
    """How much each term of the loss weighs beside the cross entropy, once the weights have risen."""

    cohesion: float = MODULARITY[0]
    coupling: float = MODULARITY[1]
    compactness: float = MODULARITY[2]

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        return torch.stack([getattr(self, name) * value for name, value in terms.items()]).sum()


class ModularityLoss:
    """Cross entropy, and what makes modules small: cohesion, coupling and compactness of the kernels in use.

    An image's usage of a kernel is tanh(relu(map) averaged over positions), where the next layer reads the map. For
    each layer cohesion is one minus the mean cosine similarity of the usage of two images of a class, coupling the mean
    similarity of two images of different classes, and compactness the mean usage. Their means over all kernels count,
    so that a layer weighs as much as it has kernels: first layers have few, and all classes need most of these. The
    weights are 0 in the first quarter of the training, in which the network learns to classify, and are whole from four
    tenths on. The terms are those of Qi et al. (MwT, ICSE 2024) and Ngo et al. (MODA, arXiv 2411.01074), on activations
    only: there are no further parameters.

    Args:
        model: The classifier that is trained, or one of its architecture.
        example: Two images (2, 3, H, W) in [0, 1].
        weights: The weights of the terms.
        steps: The number of batches of the whole training.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, weights: ModularityWeights | None = None, *, steps: int
    ) -> None:
        self.weights = weights or ModularityWeights()
        self.steps = steps
        self.done = 0
        self.readers = usage_readers(model, example)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch (pixels (N, 3, H, W), labels (N,)), and count it."""
        pixels, labels = batch
        with used_kernels(model, self.readers) as usage:
            entropy = F.cross_entropy(model(pixels), labels)
        terms = modularity_terms(usage, labels)
        rise = min(1.0, max(0.0, (self.done / self.steps - BEGIN) / (WHOLE - BEGIN)))
        self.done += 1
        return entropy + rise * self.weights.total(terms)

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches there were, for a checkpoint."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore how many batches there were."""
        self.done = state["done"]


def first_modular_epoch(epochs: int) -> int:
    """Return the first of a number of epochs, from 0 on, in which the weights are whole; the last where none is.

    >>> first_modular_epoch(40), first_modular_epoch(1)
    (16, 0)
    """
    return min(math.ceil(WHOLE * epochs), epochs - 1)


def modularity_terms(usage: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return cohesion, coupling and compactness, each the mean over layers, weighted by their numbers of kernels.

    Args:
        usage: For each layer the usage (N, kernels) of its kernels by the images.
        labels: Their classes (N,).
    """
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    pairs = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike, unlike = (same & pairs).float(), (~same).float()
    cohesion, coupling, compactness = [], [], []
    for each in usage:
        unit = F.normalize(each, dim=1)
        similarity = unit @ unit.T
        cohesion.append((alike * (1 - similarity)).sum() / alike.sum().clamp(min=1))
        coupling.append((unlike * similarity).sum() / unlike.sum().clamp(min=1))
        compactness.append(each.mean())
    kernels = labels.new_tensor([each.shape[1] for each in usage]).float()
    means = (torch.stack(parts) @ (kernels / kernels.sum()) for parts in (cohesion, coupling, compactness))
    return dict(zip(("cohesion", "coupling", "compactness"), means, strict=True))


def usage_readers(model: nn.Module, example: Tensor) -> list[tuple[str, int]]:
    """Return for each layer of kernels the layer of the network that reads it, and its inputs per kernel.

    UserError for a network that cannot be split.
    """
    network = network_of(model)
    with eval_mode(model), torch.no_grad():
        layers = layers_to_split(network, normalize_of(model, example.to(device_of(model))))
    found = [_reader(network, layer) for layer in layers]
    return [each for each in found if each is not None]


def _reader(network: nn.Module, layer: Layer) -> tuple[str, int] | None:
    """Return the first layer that reads these kernels and nothing else, and its inputs per kernel."""
    for name, inputs in layer.readers.items():
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if weight.shape[1] == inputs * layer.kernels:
            return name, inputs
    return None


@contextmanager
def used_kernels(model: nn.Module, readers: Sequence[tuple[str, int]]) -> Iterator[list[Tensor]]:
    """Collect the usage (N, kernels) of each layer's kernels from the one forward pass within the block."""
    whole = getattr(model, "module", model)  # as data-parallel training wraps it
    network, found = network_of(whole), {}

    def hook(index: int, inputs: int) -> Any:
        def record(_module: nn.Module, read: tuple[Tensor, ...]) -> None:
            positions = read[0].relu().flatten(2).mean(2) if read[0].ndim > 2 else read[0].relu()
            found[index] = positions.unflatten(1, (-1, inputs)).mean(2).float().tanh()

        return record

    usage: list[Tensor] = []
    with ExitStack() as stack:
        for index, (name, inputs) in enumerate(readers):
            stack.enter_context(hooked_before(network.get_submodule(name), hook(index, inputs)))
        yield usage
    usage.extend(found[index] for index in sorted(found))


@torch.no_grad()
def measure_modularity(model: nn.Module, images: Images, count: int = 1000) -> dict[str, float]:
    """Return cohesion, coupling and compactness of a classifier on the first `count` of some images, in eval mode."""
    images = images.take(torch.arange(min(count, len(images)), device=images.labels.device))
    images = images.to(device_of(model))
    readers = usage_readers(model, views.to_float(images.pixels[:2]))
    rows = []
    with eval_mode(model):
        for pixels, _labels in views.clean(images, 256):
            with used_kernels(model, readers) as usage:
                model(pixels)
            rows.append(usage)
    whole = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    return {name: value.item() for name, value in modularity_terms(whole, images.labels).items()}


def train_for_modularity(
    model: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    weights: ModularityWeights | None = None,
    seed: int = 2021,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
) -> tuple[nn.Module, History]:
    """Train a copy of a classifier from scratch with `ModularityLoss`, and return it in the state of its best epoch.

    That is the best of the epochs in which the weights are whole.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1] that can be split.
        data: The data; `train` is learned from, `val` chooses the epoch.
        recipe: How to train.
        weights: The weights of the terms.
        seed: The seed of the order of the images, their crops and dropout.
        amp: Whether forward passes run in bfloat16.
        checkpoint: Where the training is saved after every epoch, and resumed from.

    Returns:
        The classifier, and loss and validation accuracy of each epoch. Split it as any other.

    Raises:
        UserError: When the network cannot be split.

    >>> data = Data.of((torch.rand(20, 3, 8, 8), torch.arange(20) % 2), (torch.rand(8, 3, 8, 8), torch.arange(8) % 2))
    >>> network = nn.Sequential(
    ...     nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    >>> trained, history = train_for_modularity(network, data, Recipe(epochs=2))
    >>> sorted(measure_modularity(trained, data.val))
    ['cohesion', 'compactness', 'coupling']
    """
    recipe = recipe or Recipe()
    loss = ModularityLoss(model, data.example, weights, steps=recipe.steps(len(data.train)))
    first = first_modular_epoch(recipe.epochs)
    return train_classifier(
        model, data, recipe, amp=amp, seed=seed, checkpoint=checkpoint, loss=loss, carried=loss, eligible=first
    )
