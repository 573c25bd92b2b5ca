"""Semi-supervised repair: each epoch replays what the model knows with the new labels, then learns from guesses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.sources import Images
from deeppatch.distributed.data_parallel import Batch
from deeppatch.errors import UserError
from deeppatch.hybrid.targets import mixed, mixing_shares, pseudo_labels, row_weights, smoothed, weighted_loss
from deeppatch.hybrid.training_data import Recipe, SemiSupervisedData, drawn
from deeppatch.runtime import autocast, generator
from deeppatch.training import History, constant_sgd, fit, last, predict

PREDICTING = 256  # images a batch where nothing is learnt


@dataclass
class Repair:
    """A network under repair. `finished` counts its epochs; `model` is trained by `fit` and looked at here."""

    model: nn.Module
    material: SemiSupervisedData
    recipe: Recipe
    seed: int
    amp: bool = False
    finished: int = 0
    _measured: dict[int, Tensor] = field(default_factory=dict)

    def replayed(self) -> Tensor:
        """Return the places (n,) of the training images that the model classifies correctly, as they are."""
        train, training = self.material.train, self.model.training
        right = predict(self.model, views.clean(train, PREDICTING), amp=self.amp, label="replay") == train.labels
        self.model.train(training)
        if not right.any():
            raise UserError(
                "the model classifies no training image correctly: train it longer in pretrain, or give a lower --lr"
            )
        return right.nonzero()[:, 0]

    def unsmoothness(self, epochs: int) -> Tensor:
        """Return entropies (N,) in [0, 1] of the model, which has been through so many epochs; measured once."""
        if epochs not in self._measured:
            training = self.model.training
            self._measured = {epochs: self.material.unsmoothness(self.model, epochs)}  # type: ignore[misc]
            self.model.train(training)
        return self._measured[epochs]

    def weights(self, epoch: int) -> Tensor:
        """Return the drawing weights (N,) of an epoch (from 0): as given in the first, then by the model as it is."""
        material = self.material
        if epoch == 0 or material.unsmoothness is None or not material.weights.any():
            return material.weights
        return material.refreshed(self.unsmoothness(epoch))


@dataclass(frozen=True)
class RepairEpoch:
    """The batches (pixels, targets, weights, see `weighted_loss`) of one epoch, chosen by the model as it is when read.

    First phase: replayed training images and pool images whose label is known, shuffled, with smoothed labels. Second
    phase: replayed images with their labels, and pool images drawn by weight, each in all its views, with guessed
    targets (or the smoothed label where it is known), all mixed up.
    """

    repair: Repair
    epoch: int

    @cached_property
    def _replayed(self) -> Tensor:
        return self.repair.replayed()

    @property
    def _steps(self) -> tuple[int, int]:
        """How many batches each phase has."""
        material, recipe = self.repair.material, self.repair.recipe
        replayed, known = len(self._replayed), int((material.known >= 0).sum())
        first = recipe.capped((replayed + known) // recipe.batch) if material.supervised else 0
        longer = max(replayed, material.drawn_from) // recipe.batch
        return first, recipe.capped(longer) if material.weights.any() else 0

    def __len__(self) -> int:
        return sum(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        first, second = self._steps
        weights = self.repair.weights(self.epoch) if second else self.repair.material.weights
        if first:
            yield from self._supervised(first)
        if second:
            yield from self._semi_supervised(second, weights)
        self.repair.finished = self.epoch + 1  # read to the end: the last step has been taken

    def _supervised(self, steps: int) -> Iterator[Batch]:
        material, recipe = self.repair.material, self.repair.recipe
        draw = generator(self.repair.seed, "supervised", self.epoch)
        chosen = material.known >= 0
        everything = Images(
            torch.cat([material.train.take(self._replayed).pixels, material.pool[chosen]]),  # type: ignore[list-item]
            torch.cat([material.train.labels[self._replayed], material.known[chosen]]),
        )
        for pixels, labels in material.labelled(everything, recipe.batch, steps, draw):
            targets = smoothed(labels, material.classes, recipe.smoothing)
            yield pixels, targets, row_weights(len(labels), 0, 0, pixels.device)

    def _semi_supervised(self, steps: int, weights: Tensor) -> Iterator[Batch]:
        repair, material, recipe = self.repair, self.repair.material, self.repair.recipe
        draw = generator(repair.seed, "semi-supervised", self.epoch)
        replayed = material.train.take(repair.replayed() if material.supervised else self._replayed)
        device = replayed.labels.device
        order = drawn(weights, recipe.batch, steps, draw, replacement=material.unsmoothness is not None).to(device)
        shares = mixing_shares(steps, recipe.alpha, draw).to(device)
        certain = material.labelled(replayed, recipe.batch, steps, draw)
        for step, (pixels, labels) in enumerate(certain):
            sights = material.views(material.pool[order[step]], draw)
            with autocast(device, repair.amp):
                guessed = pseudo_labels(repair.model, sights, recipe.temperature)
            known = material.known[order[step]].unsqueeze(1)
            taught = smoothed(known.clamp(min=0)[:, 0], material.classes, recipe.smoothing)
            guessed = torch.where(known >= 0, taught, guessed).repeat_interleave(sights.shape[1], 0)
            whole = torch.cat([pixels, sights.flatten(0, 1)])
            targets = torch.cat([smoothed(labels, material.classes, 0), guessed])
            partners = torch.randperm(len(whole), generator=draw).to(device)
            grown = 1.0 if not recipe.ramp else min(1.0, (self.epoch + step / steps) / recipe.ramp)
            yield (
                mixed(whole, partners, shares[step]),
                mixed(targets, partners, shares[step]),
                row_weights(len(labels), len(guessed), grown * recipe.weight, device),
            )


def repair(
    model: nn.Module,
    material: SemiSupervisedData,
    recipe: Recipe,
    epochs: int,
    validate: Callable[[nn.Module], float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    seed: int,
    watch: Callable[[nn.Module], dict[str, Any]],
    checkpoint: Checkpoint | None = None,
    amp: bool = False,
    label: str = "relearn",
) -> History:
    """Train a model in place for so many epochs at a constant learning rate, and leave it as the last one has it.

    `validate` returns an accuracy in [0, 1] that chooses nothing. The history's `watched` has what `watch` returns
    after each epoch, and where the material measures it "entropy", the pool's mean unsmoothness in [0, 1].
    """
    torch.manual_seed(seed)  # dropout must not depend on what came before
    state = Repair(model, material, recipe, seed, amp)
    optimizer, schedule = constant_sgd(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def noted(trained: nn.Module) -> dict[str, Any]:
        measured = material.unsmoothness is not None and material.weights.any()
        entropy = {"entropy": state.unsmoothness(state.finished).mean().item()} if measured else {}
        return {**watch(trained), **entropy}

    return fit(
        model,
        [RepairEpoch(state, epoch) for epoch in range(epochs)],
        validate,
        loss=weighted_loss,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        watch=noted,
        choose=last,
        amp=amp,
        label=label,
    )
