"""Fine-tune what has been decomposed: the whole network, or its head on cached features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.training import History, Stream, adam, cross_entropy, fit


def tune(
    module: nn.Module,
    epochs: Sequence[Stream],
    validate: Callable[[nn.Module], float],
    *,
    lr: float,
    watch: Callable[[nn.Module], float] | None = None,
    checkpoint: Checkpoint | None = None,
    amp: bool = False,
    label: str = "finetune",
) -> tuple[nn.Module, History]:
    """Return a copy of a decomposed network, or of its head, trained with Adam and cross entropy (Badola et al., 2023).

    Batches hold what `module` reads: pixels, or pooled features. The copy is in the state of its best epoch, which
    `validate` chooses; `watch` is noted in the history and chooses nothing.
    """
    tuned = copy.deepcopy(module)
    for parameter in tuned.parameters():
        parameter.requires_grad_(True)
    optimizer, schedule = adam(tuned.parameters(), lr=lr)
    history = fit(
        tuned,
        epochs,
        validate,
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        watch=watch,
        amp=amp,
        label=label,
    )
    return tuned, history
