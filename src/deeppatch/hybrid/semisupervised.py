"""Semi-supervised repair: each epoch has a supervised phase, then a phase with pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.distributed.data_parallel import Batch
from deeppatch.errors import UserError
from deeppatch.hybrid.targets import mix_rows, mixing_shares, pseudo_labels, row_weights, smooth_labels, weighted_loss
from deeppatch.hybrid.training_data import Recipe, RepairSettings, SemiSupervisedData, draw_batches
from deeppatch.runtime import autocast
from deeppatch.training import History, constant_sgd, fit, last_epoch, predict, seeded

EVAL_BATCH_SIZE = 256  # without training


@dataclass
class RepairState:
    """The state of a repair: the model that `fit` trains, and the number of `finished` epochs."""

    model: nn.Module
    data: SemiSupervisedData
    recipe: Recipe
    seed: int
    amp: bool = False
    finished: int = 0
    _measured: dict[int, Tensor] = field(default_factory=dict)

    def replayed(self) -> Tensor:
        """Return the indices (n,) of the training images that the model classifies correctly without augmentation."""
        train, training = self.data.train, self.model.training
        correct = predict(self.model, views.clean(train, EVAL_BATCH_SIZE), amp=self.amp, label="replay") == train.labels
        self.model.train(training)
        if not correct.any():
            raise UserError(
                "the model classifies no training image correctly: train it longer first, or give a lower learning rate"
            )
        return correct.nonzero()[:, 0]

    def consistency_entropy(self, epochs: int) -> Tensor:
        """Return the entropies (N,) in [0, 1] of the model after `epochs` epochs; they are measured once."""
        if epochs not in self._measured:
            training = self.model.training
            self._measured = {epochs: self.data.consistency_entropy(self.model, epochs)}  # type: ignore[misc]
            self.model.train(training)
        return self._measured[epochs]

    def weights(self, epoch: int) -> Tensor:
        """Return the sampling weights (N,) of an epoch (from 0): given in the first, then by the current model."""
        data = self.data
        if epoch == 0 or data.consistency_entropy is None or not data.weights.any():
            return data.weights
        return data.updated_weights(self.consistency_entropy(epoch))


@dataclass(frozen=True)
class RepairEpoch:
    """The batches (pixels, targets, weights; see `weighted_loss`) of one epoch, selected by the model when read.

    First phase: replayed training images and pool images with known labels, shuffled, with smoothed labels. Second
    phase: replayed images with their labels, and pool images sampled by weight, each with all its views and with
    pseudo-labels (or the smoothed label if it is known), combined by mixup.
    """

    repair: RepairState
    epoch: int

    @cached_property
    def _replayed(self) -> Tensor:
        return self.repair.replayed()

    @property
    def _steps(self) -> tuple[int, int]:
        """The number of batches of each phase."""
        data, recipe = self.repair.data, self.repair.recipe
        replayed, known = len(self._replayed), int((data.known >= 0).sum())
        first = recipe.capped((replayed + known) // recipe.batch) if data.supervised else 0
        passes = max(replayed, data.drawn_from) // recipe.batch
        return first, recipe.capped(passes) if data.weights.any() else 0

    def __len__(self) -> int:
        return sum(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        first, second = self._steps
        weights = self.repair.weights(self.epoch) if second else self.repair.data.weights
        if first:
            yield from self._supervised(first)
        if second:
            yield from self._semi_supervised(second, weights)
        self.repair.finished = self.epoch + 1  # the stream has been read, so the last step is done

    def _supervised(self, steps: int) -> Iterator[Batch]:
        data, recipe = self.repair.data, self.repair.recipe
        generator = runtime.generator(self.repair.seed, "supervised", self.epoch)
        chosen = data.known >= 0
        everything = Images(
            torch.cat([data.train.take(self._replayed).pixels, data.pool[chosen]]),  # type: ignore[list-item]
            torch.cat([data.train.labels[self._replayed], data.known[chosen]]),
        )
        for pixels, labels in data.labelled(everything, recipe.batch, steps, generator):
            targets = smooth_labels(labels, data.classes, recipe.smoothing)
            yield pixels, targets, row_weights(len(labels), 0, 0, pixels.device)

    def _semi_supervised(self, steps: int, weights: Tensor) -> Iterator[Batch]:
        repair, data, recipe = self.repair, self.repair.data, self.repair.recipe
        generator = runtime.generator(repair.seed, "semi-supervised", self.epoch)
        replayed = data.train.take(repair.replayed() if data.supervised else self._replayed)
        device = replayed.labels.device
        order = draw_batches(weights, recipe.batch, steps, generator, replacement=data.with_replacement).to(device)
        shares = mixing_shares(steps, recipe.alpha, generator).to(device)
        replay_batches = data.labelled(replayed, recipe.batch, steps, generator)
        for step, (pixels, labels) in enumerate(replay_batches):
            view_pixels = data.views(data.pool[order[step]], generator)
            with autocast(device, repair.amp):
                pseudo = pseudo_labels(repair.model, view_pixels, recipe.temperature)
            known = data.known[order[step]].unsqueeze(1)
            label_targets = smooth_labels(known.clamp(min=0)[:, 0], data.classes, recipe.smoothing)
            pseudo = torch.where(known >= 0, label_targets, pseudo).repeat_interleave(view_pixels.shape[1], 0)
            whole = torch.cat([pixels, view_pixels.flatten(0, 1)])
            targets = torch.cat([smooth_labels(labels, data.classes, 0), pseudo])
            partners = torch.randperm(len(whole), generator=generator).to(device)
            ramp_factor = 1.0 if not recipe.ramp else min(1.0, (self.epoch + step / steps) / recipe.ramp)
            yield (
                mix_rows(whole, partners, shares[step]),
                mix_rows(targets, partners, shares[step]),
                row_weights(len(labels), len(pseudo), ramp_factor * recipe.weight, device),
            )


def repair(
    model: nn.Module,
    data: SemiSupervisedData,
    recipe: Recipe,
    settings: RepairSettings,
    validate: Callable[[nn.Module], float],
    *,
    watch: Callable[[nn.Module], dict[str, Any]] = lambda _model: {},
    checkpoint: Checkpoint | None = None,
    label: str = "relearn",
) -> History:
    """Train a model in place at a constant learning rate, and leave it in the state of the last epoch.

    `validate` returns an accuracy in [0, 1] for the history only. The history's `watched` has what `watch` returns
    after each epoch, and if the data measure it "entropy", the pool's mean consistency entropy in [0, 1].
    """
    state = RepairState(model, data, recipe, settings.seed, settings.amp)
    optimizer, schedule = constant_sgd(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )

    def watched(trained: nn.Module) -> dict[str, Any]:
        measured = data.consistency_entropy is not None and data.weights.any()
        entropy = {"entropy": state.consistency_entropy(state.finished).mean().item()} if measured else {}
        return {**watch(trained), **entropy}

    with seeded(settings.seed):  # dropout must not depend on what came before
        return fit(
            model,
            [RepairEpoch(state, epoch) for epoch in range(settings.epochs)],
            validate,
            loss=weighted_loss,
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=checkpoint,
            watch=watched,
            choose=last_epoch,
            amp=settings.amp,
            label=label,
        )
