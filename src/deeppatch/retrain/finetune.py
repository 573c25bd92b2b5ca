"""Fine-tuning: every parameter trains on degraded data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.training import History, Stream, cross_entropy, fit, sgd


def finetune(
    model: nn.Module,
    epochs: Sequence[Stream],
    validate: Callable[[nn.Module], float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
    label: str = "finetune",
) -> tuple[nn.Module, History]:
    """Return a copy of a classifier, all parameters trained with cross entropy, in the state of its best epoch.

    `validate` returns the accuracy in [0, 1] that chooses the epoch.
    """
    tuned = copy.deepcopy(model)
    for parameter in tuned.parameters():
        parameter.requires_grad_(True)
    optimizer, schedule = sgd(
        tuned.parameters(),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        steps=sum(len(batches) for batches in epochs),
    )
    history = fit(
        tuned,
        epochs,
        validate,
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        amp=amp,
        label=label,
    )
    return tuned, history
