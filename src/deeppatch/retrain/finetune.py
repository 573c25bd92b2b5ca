"""Fine-tune all parameters on degraded data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, Stateful
from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import count_passes, degraded_epochs
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.training import (
    History,
    Loss,
    SGDSettings,
    Stream,
    accuracy_over_levels,
    cross_entropy,
    fit,
    seeded,
)
from deeppatch.zoo.classifier import device_of


def finetune(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    epochs: int = 20,
    passes: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune all parameters of a classifier on clean and degraded images, and return the best epoch.

    In every epoch each image of `train` is clean with probability 1/2, otherwise at a level drawn uniformly. The best
    epoch has the highest accuracy on `val`, clean and at every level.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        epochs: The number of passes over `train`.
        passes: The number of images to train on, each time that one is, instead of `epochs`: for equal budgets.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, of their levels, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards; otherwise the model
            draws from it as it is.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The fine-tuned copy, in eval mode; its attribute `history` has loss and validation accuracy of each epoch,
        `passes` what the training cost, and `stored_bytes` the size of what differs from the model.

    Raises:
        UserError: When the model does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> blur = GaussianBlur((1.0, 2.0))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tuned = finetune(model, data, blur, epochs=2)
        >>> len(tuned.history.accuracy)
        2
    """
    training = Training(
        epochs, passes, SGDSettings(lr, momentum, weight_decay), batch_size, amp, seed, reseed, checkpoint
    )
    return train_parameters(model, data, corruption, training)


@dataclass(frozen=True)
class Training:
    """How a network is trained: the arguments of `finetune` of the same names; `settings` are those of its SGD."""

    epochs: int
    passes: int | None
    settings: SGDSettings
    batch_size: int
    amp: bool
    seed: int
    reseed: bool
    checkpoint: Checkpoint | None

    @property
    def budget(self) -> dict[str, Any]:
        """What functions that make epochs take."""
        return {name: getattr(self, name) for name in ("epochs", "passes", "batch_size", "seed")}


def prepared(model: nn.Module, data: Data, corruption: Any, training: Training) -> tuple[Data, Corruption]:
    """Return the data on the model's device and the corruption; UserError where they or the settings do not fit."""
    check_positive(epochs=training.epochs, batch_size=training.batch_size, lr=training.settings.lr)
    data, degrade = data.to(device_of(model)), corruptions.corruption(corruption, seed=training.seed)
    check_positive(images=len(data.train))
    check_classifier(model, data.example, len(data.classes))
    return data, degrade


def train_parameters(
    model: nn.Module,
    data: Data,
    corruption: Any,
    training: Training,
    *,
    names: Collection[str] | None = None,
    frozen: Collection[str] = (),
    label: str = "finetune",
) -> nn.Module:
    """Return a copy of a classifier with some parameters trained as `finetune` trains all, with `history` and `passes`.

    `names`, `frozen` and `label` are those of `fit_in_place`.
    """
    data, degrade = prepared(model, data, corruption, training)
    batches = degraded_epochs(data.train, degrade, **training.budget)
    with seeded(training.seed if training.reseed else None):
        tuned, history = fit_all(
            model,
            batches,
            accuracy_over_levels(data.val, degrade, batch_size=training.batch_size, amp=training.amp),
            settings=training.settings,
            amp=training.amp,
            checkpoint=training.checkpoint,
            names=names,
            frozen=frozen,
            label=label,
        )
    passes = count_passes(batches, len(views.append(data.val, degrade, training.batch_size).index))
    return noted(tuned, history=history, passes=passes, stored_bytes=changed_bytes(model, tuned))


def noted(model: nn.Module, **facts: Any) -> nn.Module:
    """Return a model with results of its training as attributes, which are no part of its state."""
    for name, value in facts.items():
        setattr(model, name, value)
    return model


def changed_bytes(model: nn.Module, corrected: nn.Module) -> int:
    """Return the size of the tensors in which a corrected network differs from its base: what must be stored."""
    before = model.state_dict()
    changed = [each for name, each in corrected.state_dict().items() if not torch.equal(each, before[name])]
    return sum(each.numel() * each.element_size() for each in changed)


def fit_all(
    model: nn.Module, epochs: Sequence[Stream], validate: Callable[[nn.Module], float], **options: Any
) -> tuple[nn.Module, History]:
    """Return a copy of a model, trained by `fit_in_place`, which takes the `options`, and the history."""
    tuned = copy.deepcopy(model)
    return tuned, fit_in_place(tuned, epochs, validate, **options)


def fit_in_place(
    model: nn.Module,
    epochs: Sequence[Stream],
    validate: Callable[[nn.Module], float],
    *,
    settings: SGDSettings | None = None,
    loss: Loss = cross_entropy,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
    names: Collection[str] | None = None,
    frozen: Collection[str] = (),
    carried: Stateful | None = None,
    label: str = "finetune",
) -> History:
    """Train the parameters of a model, with cross entropy where no loss is given, and leave it in its best epoch.

    `validate` returns the accuracy in [0, 1] by which the epoch is chosen. With `names` only these parameters are
    trained; the modules called in `frozen` are in eval mode throughout, so that their statistics stay. `carried` is
    that of `fit`.
    """
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(names is None or name in names)
        trained += [parameter] if parameter.requires_grad else []
    if not trained:
        raise UserError(f"{label}: the model has none of the parameters that this trains")
    optimizer, schedule = (settings or SGDSettings()).optimizer(trained, epochs)

    def enter_training(network: nn.Module) -> None:
        network.train()
        for name in frozen:
            network.get_submodule(name).training = False

    return fit(
        model,
        epochs,
        validate,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        enter_training=enter_training,
        carried=carried,
        amp=amp,
        label=label,
    )
