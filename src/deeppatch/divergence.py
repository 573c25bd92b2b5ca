"""When a training is useless: its loss is not finite or has grown, or its model has fallen to chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from deeppatch.distributed import ranks
from deeppatch.distributed.data_parallel import Batch
from deeppatch.errors import UserError

Loss = Callable[[nn.Module, Batch], Tensor]

LOSS_GROWTH = 100.0  # times the loss of the first batch, or 100 where that is below 1
# shares of the way from chance to no error: what is at chance at least, and at most, and what is above it
AT_CHANCE, MOST_AT_CHANCE, ABOVE_CHANCE = 0.05, 0.2, 0.1
DEVIATIONS = 3  # of the accuracy of guesses: what is no further above chance may be guesses
LEAST_FALL = 0.75  # of what the start had above chance
ADVICE = "start anew with a lower learning rate"


@dataclass(frozen=True)
class Validation:
    """A measurement of accuracy for `training.fit`, with which it recognises a model that has fallen to chance.

    Args:
        measure: Returns a model's accuracy, in [0, 1].
        labels: The labels (N,) of the images that it measures on.
        before: The accuracy of the model that training starts from, where that is not the one that `fit` is given.
    """

    measure: Callable[[nn.Module], float]
    labels: Tensor
    before: float | None = None

    def __call__(self, model: nn.Module) -> float:
        """Return a model's accuracy, in [0, 1]."""
        return self.measure(model)

    @property
    def chance(self) -> float:
        """Return the accuracy of always giving the most frequent class.

        >>> import torch
        >>> Validation(lambda _model: 1.0, torch.tensor([0, 2, 2, 1])).chance
        0.5
        """
        return self.labels.bincount().max().item() / len(self.labels)

    def above_chance(self, accuracy: float) -> float:
        """Return how far an accuracy is from chance (0) to no error (1)."""
        return (accuracy - self.chance) / max(1 - self.chance, 1e-9)

    @property
    def reached_by_guesses(self) -> float:
        """Return how far guesses come from chance (0) to no error (1): up to three standard deviations.

        >>> import torch
        >>> round(Validation(lambda _model: 1.0, torch.arange(1000) % 10).reached_by_guesses, 3)
        0.032
        """
        return self.above_chance(
            self.chance + DEVIATIONS * math.sqrt(self.chance * (1 - self.chance) / len(self.labels))
        )

    def at_chance(self, accuracy: float) -> bool:
        """Tell whether an accuracy may be that of guesses: of few images no more than a fifth of the way is."""
        return self.above_chance(accuracy) <= max(AT_CHANCE, min(MOST_AT_CHANCE, self.reached_by_guesses))

    def has_fallen(self, before: float, after: float) -> bool:
        """Tell whether accuracy was above chance, more than guesses are, is at chance, and has lost most of it."""
        was = self.above_chance(before)
        lost = was - self.above_chance(after) > LEAST_FALL * was
        return was >= ABOVE_CHANCE and was > self.reached_by_guesses and lost and self.at_chance(after)


class FirstLoss:
    """The loss of the first batch of a training: that of the model before any step."""

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    def noting(self, loss: Loss) -> Loss:
        """Return the same loss, whose first value is kept."""

        def noted(model: nn.Module, batch: Batch) -> Tensor:
            found = loss(model, batch)
            if self.value is None:
                self.value = found.item()
            return found

        return noted


def check_loss(name: str, model: nn.Module, mean: float, first: FirstLoss) -> None:
    """Raise UserError when an epoch has left a loss or a model that is not finite, or a loss far above the first.

    Args:
        name: The epoch, as it is called in messages.
        model: The model after the epoch; its parameters and normalisation statistics must be finite.
        mean: The mean loss of the epoch.
        first: The loss of the first batch; that of rank 0 counts.
    """
    statistics = [each for key, each in model.named_buffers() if key.endswith(("running_mean", "running_var"))]
    finite = all(bool(each.isfinite().all()) for each in (*model.parameters(), *statistics))
    if not (finite and math.isfinite(mean)):
        raise UserError(f"{name}: the loss is not finite; check the weights, or {ADVICE}")
    limit = LOSS_GROWTH * max(1.0, ranks.broadcast_from_rank0(lambda: first.value) or 0.0)
    if mean > limit:
        raise UserError(f"{name}: the loss is {mean:.3g}, above {LOSS_GROWTH:.0f} times that of the start; {ADVICE}")


def check_accuracy(
    name: str, validate: Callable[[nn.Module], float], model: nn.Module, accuracy: float, before: Mapping[str, Tensor]
) -> None:
    """Raise UserError when training has taken a model from above chance to chance; only a `Validation` can tell.

    Args:
        name: The training, as it is called in messages.
        validate: What has measured `accuracy`.
        model: The model; it is left in the state `before` where that had to be measured.
        accuracy: The accuracy of the state that the training leaves.
        before: The state that the training started from.
    """
    if not isinstance(validate, Validation) or not validate.at_chance(accuracy):
        return
    if (start := validate.before) is None:
        model.load_state_dict(before)
        start = validate(model)
    if validate.has_fallen(start, accuracy):
        raise UserError(
            f"{name}: the validation accuracy is {100 * accuracy:.1f} %, which is chance, where it was "
            f"{100 * start:.1f} % before; {ADVICE}, or with more epochs where it had just begun"
        )
