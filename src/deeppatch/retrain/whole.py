"""What methods that train a whole network on streams of their own share with fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import Stateful
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Epoch, Passes, count_passes
from deeppatch.data.views import View
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track
from deeppatch.retrain.finetune import Training, changed_bytes, fit_in_place, noted
from deeppatch.training import Loss, accuracy_over_levels, cross_entropy, seeded
from deeppatch.zoo.classifier import device_of


def validated(data: Data, degrade: Corruption, batch_size: int) -> int:
    """Return how many images a validation reads."""
    return len(views.append(data.val, degrade, batch_size).index)


def train_whole(
    tuned: nn.Module,
    base: nn.Module,
    data: Data,
    degrade: Corruption,
    batches: Sequence[Epoch],
    training: Training,
    *,
    label: str,
    loss: Loss = cross_entropy,
    carried: Stateful | None = None,
    spent: Callable[[], Passes] = Passes,
) -> nn.Module:
    """Train a copy of a base in place on batches as `finetune` does, and note `history`, `passes` and `stored_bytes`.

    The epoch is chosen by the accuracy on val, clean and at each level. `loss` and `carried` are those of `fit`.
    `spent` returns, after the training, what it cost beside reading the batches and val.
    """
    with seeded(training.seed if training.reseed else None):
        history = fit_in_place(
            tuned,
            batches,
            accuracy_over_levels(data.val, degrade, batch_size=training.batch_size, amp=training.amp),
            settings=training.settings,
            loss=loss,
            amp=training.amp,
            checkpoint=training.checkpoint,
            carried=carried,
            label=label,
        )
    passes = count_passes(batches, validated(data, degrade, training.batch_size)) + spent()
    return noted(tuned, history=history, passes=passes, stored_bytes=changed_bytes(base, tuned), facts={})


@torch.no_grad()
def probabilities(model: nn.Module, view: View, *, amp: bool = False) -> Tensor:
    """Return the softmax (M, C) of a model for the images of a view, float32, in eval mode."""
    found, device = [], device_of(model)
    with eval_mode(model):
        for pixels, _labels in track(view, len(view), "scoring"):
            with runtime.autocast(device, amp):
                logits = model(pixels)
            found.append(logits.float().softmax(1))
    return torch.cat(found)
