"""Train a classifier from scratch."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from deeppatch.artifacts import Checkpoint, Stateful
from deeppatch.data.dataset import Data
from deeppatch.pretraining.halfway import Halfway
from deeppatch.pretraining.recipes import Recipe
from deeppatch.training import History, Loss, accuracy_on, clean_epochs, cross_entropy, fit, seeded, sgd
from deeppatch.zoo.classifier import device_of

Trained = TypeVar("Trained", bound=nn.Module)


def train_classifier(
    model: Trained,
    data: Data,
    recipe: Recipe | None = None,
    *,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
    halfway: Halfway | None = None,
    loss: Loss = cross_entropy,
    carried: Stateful | None = None,
    eligible: int = 0,
) -> tuple[Trained, History]:
    """Train a copy of a classifier with SGD and cross entropy, and return it in the state of its best epoch.

    Args:
        model: Maps pixels (N, 3, H, W) in [0, 1] to logits (N, classes); the training starts from its parameters.
        data: The data; the part `train` is learned from, and the accuracy on `val` chooses the best epoch.
        recipe: How to train (default: 50 epochs, learning rate 0.01, annealed to zero along a cosine).
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of the images, their crops and dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards; otherwise dropout
            draws from it as it is.
        checkpoint: Where the training is saved after each epoch, and resumed from.
        halfway: Keeps the state at half of the best epoch.
        loss: The loss of a batch.
        carried: What the loss keeps of earlier batches, for the checkpoint.
        eligible: The first epoch, from 0 on, that may be the best one.

    Returns:
        The trained classifier, in eval mode, and the training loss and validation accuracy of each epoch.

    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    >>> pixels, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    >>> data = Data.of((pixels, labels), (pixels, labels))
    >>> trained, history = train_classifier(network, data, Recipe(epochs=2, lr=0.1))
    >>> len(history.loss), trained is network
    (2, False)
    """
    recipe = recipe or Recipe()
    trained = copy.deepcopy(model)
    data = data.to(device_of(trained))
    epochs = clean_epochs(
        data.train,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        augment=recipe.augment and data.crop,
        mirror=data.mirror,
    )
    steps = sum(map(len, epochs))
    optimizer, schedule = sgd(
        trained.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        steps=steps,
        milestones=None if recipe.milestones is None else [round(share * steps) for share in recipe.milestones],
    )
    with seeded(seed if reseed else None):
        history = fit(
            trained,
            epochs,
            accuracy_on(data.val, batch_size=recipe.batch_size, amp=amp),
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=checkpoint,
            after_epoch=None if halfway is None else halfway.keep,
            carried=carried,
            eligible=eligible,
            amp=amp,
            label="pretrain",
        )
    return trained, history
