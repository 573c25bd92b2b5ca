"""Fine-tune a decomposed network, or only its head on features that are computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.decomposition.features import Features, LastLayer, ShuffledFeatures
from deeppatch.decomposition.head import DecomposedHead, decompose, with_head
from deeppatch.decomposition.influence import measure
from deeppatch.divergence import Validation
from deeppatch.metrics import accuracy
from deeppatch.training import History, Stream, accuracy_on, adam, clean_epochs, cross_entropy, fit


@dataclass(frozen=True)
class TuneSettings:
    """The settings of fine-tuning with Adam at a constant learning rate (Badola et al., 2023)."""

    epochs: int = 5
    lr: float = 2e-4
    batch_size: int = 64
    seed: int = 2021
    amp: bool = False


@dataclass(frozen=True)
class FineTuned:
    """A network in the state of its best epoch on val.

    `history.watched` has the accuracy on test after each epoch, and `before` that without training, in [0, 1].
    """

    model: nn.Module
    history: History
    before: float


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

    Batches have the inputs of `module`: pixels or penultimate features. The copy is in the state of its best epoch,
    which `validate` chooses; what `watch` returns is only recorded in the history.
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


def tune_network(
    model: nn.Module,
    indices: Tensor,
    data: Data,
    settings: TuneSettings,
    *,
    checkpoint: Checkpoint | None = None,
) -> FineTuned:
    """Decompose a classifier at `indices` (C, k) and train all of it, on augmented images if the data allow it."""
    data = data.to(next(model.parameters()).device)
    sparse = decompose(model, data, indices)
    epochs = clean_epochs(
        data.train,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        augment=data.crop,
        mirror=data.mirror,
    )
    on_val, on_test = (accuracy_on(part, amp=settings.amp) for part in (data.val, data.test))
    before = on_test(sparse)
    tuned, history = tune(
        sparse, epochs, on_val, lr=settings.lr, watch=on_test, checkpoint=checkpoint, amp=settings.amp
    )
    return FineTuned(tuned, history, before)


def tune_head(
    last: LastLayer, indices: Tensor, settings: TuneSettings, *, checkpoint: Checkpoint | None = None
) -> FineTuned:
    """Decompose a classifier at `indices` (C, k) and train only its last layer, on features without augmentation."""
    on_val, on_test = (head_accuracy(last.features(part)) for part in ("val", "test"))
    head = DecomposedHead.from_linear(last.layer, indices)
    before = on_test(head)
    tuned, history = tune(
        head,
        feature_epochs(last.features("train"), settings),
        on_val,
        lr=settings.lr,
        watch=on_test,
        checkpoint=checkpoint,
        label="finetune --head-only",
    )
    return FineTuned(with_head(last.model, last.name, tuned), history, before)


def sweep(last: LastLayer, ks: Sequence[int], settings: TuneSettings) -> tuple[pd.DataFrame, float]:
    """Measure accuracy on test, in percent, for each number k of features, and with the whole layer.

    The table has a row for each k: accuracy after decomposition, and after fine-tuning of the head.
    """
    epochs, test = feature_epochs(last.features("train"), settings), last.features("test")
    on_val, on_test = head_accuracy(last.features("val")), head_accuracy(test)
    rows = []
    for influence in measure(last.training_features(), len(last.data.classes), ks):
        head = DecomposedHead.from_linear(last.layer, influence.indices())
        tuned, _ = tune(head, epochs, on_val, lr=settings.lr, label=f"k = {influence.k}")
        rows.append(
            {
                "k": influence.k,
                "multiply_adds": head.multiply_adds,
                "decomposed_percent": 100 * on_test(head),
                "finetuned_percent": 100 * on_test(tuned),
            }
        )
    return pd.DataFrame(rows), 100 * on_test(last.layer)


def feature_epochs(train: Features, settings: TuneSettings) -> list[ShuffledFeatures]:
    """Return the training batches of a head: shuffled passes over the same features."""
    return [ShuffledFeatures(train, settings.batch_size, settings.seed, epoch) for epoch in range(settings.epochs)]


def head_accuracy(features: Features) -> Validation:
    """Return a function that measures the accuracy of a head, in [0, 1], on features."""

    @torch.no_grad()
    def measured(head: nn.Module) -> float:
        return accuracy(head(features.values).argmax(1), features.labels)

    return Validation(measured, features.labels)
