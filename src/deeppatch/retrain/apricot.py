"""Move the weights towards those of models that are right where the network fails (Apricot)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Epoch, FirstBatches, Passes, degraded_epochs
from deeppatch.data.pairs import fixed_draw
from deeppatch.data.views import Shuffled
from deeppatch.errors import UserError, check_positive
from deeppatch.progress import info
from deeppatch.retrain.finetune import Training, changed_bytes, noted, prepared
from deeppatch.retrain.fixing import Fixing, names_to_move
from deeppatch.retrain.names import STRATEGIES
from deeppatch.retrain.whole import validated
from deeppatch.training import (
    History,
    SGDSettings,
    accuracy_over_levels,
    cross_entropy,
    fit,
    last_epoch,
    predict,
    seeded,
)


def apricot(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    rdlm: int = 20,
    rdlm_images: int = 10_000,
    rdlm_epoch: int = 40,
    fix_steps: int = 100,
    eta: float = 0.001,
    strategy: int = 2,
    unconditional: bool = False,
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
    """Move the weights of a network towards those of reduced models that are right where it fails, and train between.

    Apricot: Zhang and Chan, Apricot: A Weight-Adaptation Approach to Fixing Deep Learning Models, ASE 2019. Reduced
    models are copies of the network, trained on windows of `train`. The images of one fixed draw that the network gets
    wrong are gone through in `fix_steps` batches. For each image on which n > 0 of R reduced models are right,
    w becomes w + eta (n / R) (mean of the right ones - w). After a batch the weights stay if they are better on val
    than any before; then they are trained for one epoch, which stays if it is better still. Else they go back.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        rdlm: The number R of reduced models.
        rdlm_images: The number of images of a window; all where there are fewer.
        rdlm_epoch: The number of epochs that a reduced model is trained.
        fix_steps: The number of batches of failing images.
        eta: How far the weights move for an image.
        strategy: 2 moves towards the models that are right. 1 also moves away from those that are wrong, by
            eta (w - their mean), and 3 does that only; these two leave running statistics as they are.
        unconditional: Whether every batch and every epoch stays, without regard to val.
        epochs: The largest number of epochs in all; with the last one the search ends.
        passes: The number of images to train on in all of these epochs, in equal parts, instead of whole ones.
        lr: The initial learning rate of SGD, which falls to zero along a cosine over all of these epochs.
        momentum: The momentum of SGD; it is forgotten where weights go back.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time, in training.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of windows, of the draw, of the order of images, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from; those of the reduced models lie
            beside it.

    Returns:
        The corrected copy, in eval mode, with the attributes `history` (None where no batch was better), `passes`
        (reduced models included), `stored_bytes`, `facts` and `tables` (a row for each batch).

    Raises:
        UserError: When an option is out of range, the model does not fit the data, or a training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tuned = apricot(model, data, GaussianBlur((1.0, 2.0)), rdlm=2, rdlm_images=5, rdlm_epoch=3, fix_steps=2)
        >>> tuned.facts["rdlm_passes"]
        30
    """
    check_positive(rdlm=rdlm, rdlm_images=rdlm_images, rdlm_epoch=rdlm_epoch, fix_steps=fix_steps)
    if strategy not in STRATEGIES or not 0 <= eta <= 1:
        raise UserError(f"strategy={strategy}, eta={eta}: give strategy 1, 2 or 3, and an eta from 0 to 1")
    settings = SGDSettings(lr, momentum, weight_decay)
    training = Training(epochs, passes, settings, batch_size, amp, seed, reseed, checkpoint)
    data, degrade = prepared(model, data, corruption, training)
    reduced = Reduced(rdlm, min(rdlm_images, len(data.train)), rdlm_epoch)
    models = reduced.train(model, data, degrade, training)
    tuned = copy.deepcopy(model)
    draw = fixed_draw(data.train, degrade, batch_size, seed)
    right = torch.stack([predict(each, draw, amp=amp, label="scoring") == draw.labels for each in (tuned, *models)])
    failing = (~right[0]).nonzero().flatten()
    order = torch.randperm(len(failing), generator=runtime.generator(seed, "failing"))
    names = names_to_move(model, strategy)
    fixing = Fixing(
        tuned,
        [{name: tensor for name, tensor in each.state_dict().items() if name in names} for each in models],
        [right[1:, each] for each in failing[order.to(failing.device)].tensor_split(fix_steps)],
        accuracy_over_levels(data.val, degrade, batch_size=batch_size, amp=amp),
        eta,
        strategy,
        unconditional=unconditional,
    )
    plain = _epochs(data, degrade, training)
    history = _fit(fixing, plain, training)
    reduced.forget(training)
    info(f"apricot: {fixing.started} of {fixing.step} steps were better on val")
    spent = Passes(
        train=reduced.passes + sum(sum(each.sizes) for each in plain[: fixing.started]),
        forward=len(right) * len(data.train) + fixing.validations * validated(data, degrade, batch_size),
    )
    return noted(
        tuned,
        history=history if history.loss else None,
        passes=spent,
        stored_bytes=changed_bytes(model, tuned),
        facts={
            "failing_images": len(failing),
            "rdlm_passes": reduced.passes,
            "steps": fixing.step,
            "accepted_steps": fixing.started,
        },
        tables={"steps.csv": pd.DataFrame(fixing.rows, columns=list(Fixing.COLUMNS))},
    )


@dataclass(frozen=True)
class Reduced:
    """The reduced models: how many there are, the images of each, and the epochs that each is trained."""

    count: int
    images: int
    epochs: int

    @property
    def passes(self) -> int:
        """How many images all of them are trained on."""
        return self.count * self.images * self.epochs

    def train(self, model: nn.Module, data: Data, degrade: Corruption, training: Training) -> list[nn.Module]:
        """Return the reduced models, each trained on its window of `train`."""
        windows = self.windows(len(data.train), training.seed)
        return [self._trained(model, data, degrade, window, n, training) for n, window in enumerate(windows)]

    def windows(self, available: int, seed: int) -> list[Tensor]:
        """Return the images of each model, int64 (images,): equally far from each other in one random order.

        >>> [len(window) for window in Reduced(2, 5, 40).windows(8, seed=1)]
        [5, 5]
        """
        order = torch.randperm(available, generator=runtime.generator(seed, "windows"))
        stride = (available - self.images) // self.count
        return [order[number * stride :][: self.images] for number in range(self.count)]

    def forget(self, training: Training) -> None:
        """Delete the checkpoints of the reduced models."""
        for number in range(self.count):
            if training.checkpoint:
                training.checkpoint.beside(_name(number)).remove()

    def _trained(
        self, model: nn.Module, data: Data, degrade: Corruption, window: Tensor, number: int, training: Training
    ) -> nn.Module:
        reduced = copy.deepcopy(model)
        seed = training.seed + 1 + number
        images = data.train.take(window.to(data.train.labels.device))
        batches = degraded_epochs(images, degrade, epochs=self.epochs, batch_size=training.batch_size, seed=seed)
        optimizer, schedule = training.settings.optimizer(_trainable(reduced), batches)
        with seeded(seed):
            fit(
                reduced,
                batches,
                lambda _model: math.nan,  # the last epoch is taken
                loss=cross_entropy,
                optimizer=optimizer,
                schedule=schedule,
                checkpoint=training.checkpoint and training.checkpoint.beside(_name(number)),
                choose=last_epoch,
                amp=training.amp,
                label=f"apricot, reduced model {number + 1} of {self.count}",
            )
        return reduced


def _name(number: int) -> str:
    return f"rdlm{number}"


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _epochs(data: Data, degrade: Corruption, training: Training) -> Sequence[Epoch]:
    """Return the epochs of training: those of `finetune`, or with `passes` equal parts of that number of images."""
    size = training.batch_size
    if training.passes is None:
        return degraded_epochs(data.train, degrade, epochs=training.epochs, batch_size=size, seed=training.seed)
    count = training.passes // training.epochs // size
    if not count:
        raise UserError(f"passes={training.passes}: give a batch for each of {training.epochs} epochs, or fewer epochs")
    wholes = [Shuffled(data.train, size, training.seed, epoch, corruption=degrade) for epoch in range(training.epochs)]
    return [FirstBatches(whole, min(count, len(whole))) for whole in wholes]


def _fit(fixing: Fixing, epochs: Sequence[Epoch], training: Training) -> History:
    """Take the steps, with an epoch of training after each that stays, and return the history of these epochs."""
    optimizer, schedule = training.settings.optimizer(_trainable(fixing.model), epochs)
    with seeded(training.seed if training.reseed else None):
        return fit(
            fixing.model,
            fixing.epochs(epochs),
            lambda _model: fixing.after_training(optimizer),
            loss=cross_entropy,
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=training.checkpoint,
            carried=fixing,
            amp=training.amp,
            label="apricot",
        )
