"""Train a patch on degraded data with everything else frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.training import History, Stream, cross_entropy, fit, sgd


def train_patch(
    model: nn.Module,
    channels: dict[str, list[int]],
    kind: str,
    epochs: Sequence[Stream],
    validate: Callable[[nn.Module], float],
    example: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
    label: str = "patch",
) -> tuple[Patch, History]:
    """Train units of `kind` at `channels` of a classifier and return the best epoch's patch (TOSEM 2023).

    The model is left as it was. `validate` returns the accuracy in [0, 1] that chooses the epoch.
    """
    patched = copy.deepcopy(model)
    normalized = patched.get_submodule("normalize")(example)
    attachment = attach(patched.get_submodule("network"), channels, kind, normalized)
    optimizer, schedule = sgd(
        attachment.parameters(),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        steps=sum(len(batches) for batches in epochs),
    )
    history = fit(
        patched,
        epochs,
        validate,
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        enter_training=lambda _model: attachment.enter_training(),
        amp=amp,
        label=label,
    )
    return extract(attachment, state_digest(model.state_dict())), history
