"""Train the kernels of a network on through its modules, as a network is trained on after it has been pruned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.distributed.data_parallel import Batch
from deeppatch.modular.extract import extract
from deeppatch.modular.layers import Layer
from deeppatch.modular.modules import Modules, as_classifier
from deeppatch.modular.names import TUNING_LR
from deeppatch.training import accuracy_on, clean_epochs, fit, seeded, sgd
from deeppatch.zoo.classifier import Classifier, device_of

EPOCHS = 10


class SharedModules(nn.Module):
    """All modules of a classifier, with the classifier's own weights, through which gradients reach these.

    Weights of kernels that several modules keep get the sum of their gradients. Normalisation keeps its statistics.
    """

    def __init__(self, model: Classifier, modules: Modules, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.model = model
        self.heads = copy.deepcopy(modules.heads)
        numbered = _numbered(model.network)
        masks = [[modules.kept[layer.name][label] for layer in layers] for label in range(modules.classes)]
        members = [extract(numbered, layers, [mask.to(device_of(model)) for mask in kept]) for kept in masks]
        # tuples are no part of the state
        self.places = tuple({name: value.long() for name, value in _tensors(each).items()} for each in members)
        self.members = tuple(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to the scores (N, modules) of all modules."""
        x, own = self.model.normalize(pixels), _tensors(self.model.network)
        logits = torch.stack(
            [
                functional_call(member, {name: _taken(own[name], where) for name, where in places.items()}, (x,))
                for member, places in zip(self.members, self.places, strict=True)
            ],
            1,
        )
        return logits.diagonal(dim1=1, dim2=2) if self.heads is None else self.heads(logits)


def tune_modules(
    model: nn.Module,
    modules: Modules,
    data: Data,
    *,
    epochs: int = EPOCHS,
    lr: float = TUNING_LR,
    batch_size: int = 64,
    seed: int = 2021,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
) -> tuple[Classifier, Modules, pd.DataFrame]:
    """Train a classifier's weights so that its modules, which keep their kernels, are more accurate together.

    The loss is the cross entropy of the modules' scores, which trains heads or scales, too, plus that of the
    classifier's own logits, so that it remains the strong model that it was.

    Args:
        model: The classifier that was split; it is not changed.
        modules: Its modules.
        data: The data; `train` is learned from, and the composed accuracy on `val` chooses the epoch.
        epochs: How many epochs to train.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        batch_size: The number of images in a batch.
        seed: The seed of the order of the images and of their crops.
        amp: Whether forward passes run in bfloat16.
        checkpoint: Where the training is saved after every epoch, and resumed from.

    Returns:
        The trained classifier, its modules, and a row for each epoch, 0 for before the training: loss, and composed
        accuracy on val in [0, 1].

    Raises:
        StaleArtifact: When another classifier was split.
    """
    strong = copy.deepcopy(as_classifier(model))
    data = data.to(device_of(strong))
    shared = SharedModules(strong, modules, modules.layers(strong, data.example))
    streams = clean_epochs(
        data.train, epochs=epochs, batch_size=batch_size, seed=seed, augment=data.crop, mirror=data.mirror
    )
    optimizer, schedule = sgd(shared.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, steps=sum(map(len, streams)))
    on_val = accuracy_on(data.val)
    before = on_val.measure(shared)
    with seeded(seed):
        history = fit(
            shared,
            streams,
            replace(on_val, before=before),
            loss=tuning_loss,
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=checkpoint,
            enter_training=nn.Module.eval,  # statistics of normalisations stay, and there is no dropout
            amp=amp,
            label="tuning",
        )
    tuned = shared.model.eval()
    heads = shared.heads.requires_grad_(False) if shared.heads is not None else None
    table = pd.DataFrame({"loss": [None, *history.loss], "holdout_accuracy": [before, *history.accuracy]})
    table.insert(0, "epoch", range(len(table)))
    return tuned, replace(modules, base=state_digest(tuned.state_dict()), heads=heads), table


def tuning_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of the modules' scores, plus that of the whole network's logits."""
    pixels, labels = batch
    shared = getattr(model, "module", model)  # as data-parallel training wraps it
    assert isinstance(shared, SharedModules)
    return F.cross_entropy(model(pixels), labels) + F.cross_entropy(shared.model(pixels), labels)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _numbered(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose every number is its own place in its tensor, exact in float64."""
    numbered = copy.deepcopy(network)
    for module in numbered.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(_places(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _places(buffer)
    return numbered


def _places(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape)


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    """Return the numbers of a tensor at these places of its flattened form."""
    return tensor.reshape(-1).index_select(0, places.reshape(-1)).view(places.shape)
