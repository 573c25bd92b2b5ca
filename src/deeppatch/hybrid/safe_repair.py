"""The safe recipe from end to end: prior, training with labels and confident pseudo-labels, and the floor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.hybrid.confidence import PseudoLabelling
from deeppatch.hybrid.floor import Floor, best_between
from deeppatch.hybrid.names import SCOPES
from deeppatch.hybrid.prior import PriorEstimate
from deeppatch.hybrid.prior_correction import check_prior, correct_prior, logits_of
from deeppatch.hybrid.safe_training import SafeData, SafeEpoch, SafeRecipe, SafeState, logit_adjustment, safe_loss
from deeppatch.hybrid.scope import enter_training, limit_to_scope
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.training_data import Recipe, RepairSettings
from deeppatch.optimizers import sgd
from deeppatch.training import History, accuracy_on, fit, last_epoch, seeded

SAMPLED = 5_000  # images of the pool by which running statistics begin


@dataclass(frozen=True)
class SafeTraining:
    """What the safe recipe can be told.

    Args:
        scope: One of SCOPES: which parameters are trained.
        prior: The class shares (C,) of the pool where they are known; True to estimate them, False to correct nothing.
        trust_prior: Whether the estimate is used even if the shift is not one of classes alone.
        recipe: The constants of the training.
        judge: Returns what is known of pseudo-labels (m,) from their indices in the pool (m,), as diagnostics of a
            simulated pool.
    """

    scope: str = "all"
    prior: Tensor | bool = True
    trust_prior: bool = False
    recipe: SafeRecipe = field(default_factory=SafeRecipe)
    judge: Callable[[Tensor, Tensor], dict[str, float]] | None = None

    def check(self, classes: int, recipe: Recipe, pool_weights: str) -> None:
        """Raise UserError when the scope is unknown, the prior is no distribution, or what is not read is given."""
        if pool_weights != "dynamic" or recipe != Recipe(recipe.batch, steps=recipe.steps):
            raise UserError(
                "pool_weights, and of recipe all but batch and steps, can only be given with pseudo_labels='published'"
            )
        if self.scope not in SCOPES:
            raise UserError(f"scope={self.scope!r} is unknown; choose from {', '.join(SCOPES)}")
        if isinstance(self.prior, Tensor):
            check_prior(self.prior, classes)


@dataclass(frozen=True)
class SafeRepair:
    """The steps of a repair: `corrected` starts the training, `averaged` ends it, and `floor.network` is the result.

    `prior` is None where nothing was estimated.
    """

    corrected: nn.Module
    averaged: nn.Module
    floor: Floor
    prior: PriorEstimate | None
    history: History
    gave_up: bool
    unlabelled_images: int


def safe_repair(
    start: nn.Module,
    data: Data,
    pool_pixels: Tensor,
    selection: Selection,
    settings: RepairSettings,
    *,
    use: str,
    training: SafeTraining,
    recipe: Recipe,
    raw: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
) -> SafeRepair:
    """Correct the prior of a network, train it on replayed, bought and unlabelled images, and hold it to its floor.

    Args:
        start: The network to start from; it is not changed.
        data: The data, on the device of the network.
        pool_pixels: The images of the pool, uint8 (N, 3, H, W), on that device.
        selection: The selection of which the bought labels are read; propagated labels are not.
        settings: Epochs, initial learning rate, momentum, L2 penalty and seed.
        use: One of USES.
        training: The scope, the prior, and the constants.
        recipe: The numbers of images in a batch and of batches in an epoch.
        raw: The network as it was given, which is kept where nothing does better on val.
        checkpoint: Where the training is saved after each epoch, and resumed from.
    """
    corrected, estimate = _corrected(start, data, pool_pixels, settings, training)
    target = _target(data, estimate).to(pool_pixels.device)
    safe_data = safe_data_of(data, pool_pixels, selection, target, use)
    student = copy.deepcopy(corrected)
    parameters = limit_to_scope(student, training.scope, data.example)
    steps = _steps(safe_data, recipe, training.recipe)
    momentum = training.recipe.momentum_for(steps * settings.epochs)
    labelling = PseudoLabelling(target, momentum, training.recipe.weighting)
    if len(safe_data.index) and training.recipe.measured_start:
        evenly = torch.linspace(0, len(safe_data.index) - 1, min(SAMPLED, len(safe_data.index))).long()
        sampled = pool_pixels[safe_data.index[evenly.to(pool_pixels.device)]]
        labelling.start_from(logits_of(corrected, sampled, amp=settings.amp).softmax(1))
    state = SafeState(
        student, safe_data, training.recipe, labelling, momentum, settings.seed, settings.amp, training.judge
    )
    if checkpoint is not None:
        facts: dict[str, Tensor] = {"bought": selection.bought, "labels": selection.labels, "target": target}
        begun = state_digest(corrected.state_dict())
        checkpoint = checkpoint.with_settings(start=begun, selection=state_digest(facts))
    history = _train(state, parameters, steps, settings, training.scope, data, recipe, checkpoint)
    ends, seed, amp = (corrected, state.teacher), settings.seed, settings.amp
    floor = best_between(*ends, data.train, data.val, target, raw=raw, seed=seed, amp=amp)
    for each in (state.teacher, floor.network):
        each.requires_grad_(True)
    return SafeRepair(corrected, state.teacher, floor, estimate, history, state.stopped, len(safe_data.index))


def _train(
    state: SafeState,
    parameters: list[nn.Parameter],
    steps: int,
    settings: RepairSettings,
    scope: str,
    data: Data,
    recipe: Recipe,
    checkpoint: Checkpoint | None,
) -> History:
    epochs = [SafeEpoch(state, epoch, recipe.batch, steps) for epoch in range(settings.epochs)]
    optimizer, schedule = sgd(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        steps=steps * settings.epochs,
    )
    on_val, on_test = (accuracy_on(part, amp=settings.amp) for part in (data.val, data.test))

    def watched(_student: nn.Module) -> dict[str, Any]:
        return {"test": on_test(state.teacher), **state.watched}

    adjustment = logit_adjustment(state.data.class_shares(epochs[0].sizes), state.data.prior)
    with seeded(settings.seed):  # dropout must not depend on what came before
        return fit(
            state.student,
            epochs,
            lambda _student: on_val(state.teacher),
            loss=safe_loss(adjustment),
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=checkpoint,
            enter_training=lambda student: enter_training(student, scope),
            watch=watched,
            choose=last_epoch,
            carried=state,
            amp=settings.amp,
            label="relearn",
        )


def safe_data_of(data: Data, pool_pixels: Tensor, selection: Selection, prior: Tensor, use: str) -> SafeData:
    """Return what the safe recipe learns from under one of USES, which may be every image of the pool."""
    device = pool_pixels.device
    bought, labels = selection.bought.to(device), selection.labels.to(device)
    kept = torch.ones(len(pool_pixels), dtype=torch.bool, device=device)
    if use == "unlabelled":
        bought, labels = bought[:0], labels[:0]
    kept[bought] = False
    index = kept.nonzero()[:, 0] if use != "labels" else bought[:0]
    return SafeData(
        data.train,
        Images(pool_pixels[bought], labels),
        pool_pixels,
        index,
        prior,
        crop=data.crop,
        mirror=data.mirror,
    )


def _corrected(
    start: nn.Module, data: Data, pool_pixels: Tensor, settings: RepairSettings, training: SafeTraining
) -> tuple[nn.Module, PriorEstimate | None]:
    if training.prior is False:
        return copy.deepcopy(start).eval(), None
    known = training.prior if isinstance(training.prior, Tensor) else None
    corrected = correct_prior(
        start, data, pool_pixels, prior=known, trust=training.trust_prior, amp=settings.amp, seed=settings.seed
    )
    return corrected, corrected.prior  # type: ignore[return-value]


def _target(data: Data, estimate: PriorEstimate | None) -> Tensor:
    """Return the prior that predictions are to have: that of the training images where nothing is known of the pool."""
    if estimate is not None:
        return estimate.target
    counts = data.train.labels.bincount(minlength=len(data.classes)).double() + 1
    return counts / counts.sum()


def _steps(data: SafeData, recipe: Recipe, safe: SafeRecipe) -> int:
    """Return the number of batches of an epoch: a pass over the pool or the labelled images, whichever is longer."""
    labelled = len(data.replay) + len(data.bought)
    return recipe.capped(max(labelled // recipe.batch, len(data.index) // (safe.ratio * recipe.batch)))
