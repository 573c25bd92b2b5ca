"""Steps of the weights towards and away from those of other models, which val accepts or takes back (Apricot)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.data.epochs import Epoch
from deeppatch.graph.statistics import batch_norms
from deeppatch.progress import track

TOWARDS, AWAY = (1, 2), (1, 3)  # the strategies that move so


def coefficients(right: Tensor, eta: float, strategy: int = 2) -> Tensor:
    """Return how far a batch of failing images moves the weights w towards those of each model, float64 (R,).

    For each image in turn, with n of R models right, the weights become w + eta (n / R) (mean of the right ones - w)
    with strategy 2, w + eta (w - mean of the wrong ones) with strategy 3, and w plus both with strategy 1 (Zhang and
    Chan, ASE 2019). All of these weights are w_0 + sum_r c_r (w_r - w_0), so that only the c_r are computed.

    Args:
        right: Which models are right on which images, bool (R, B).
        eta: The rate.
        strategy: 1, 2 or 3.

    >>> coefficients(torch.tensor([[True], [True], [False], [False]]), 0.1).tolist()
    [0.025, 0.025, 0.0, 0.0]
    """
    count = len(right)
    found = torch.zeros(count, dtype=torch.float64)
    for image in right.T.cpu().double():
        moved, good = found.clone(), int(image.sum())
        if strategy in TOWARDS and good:
            moved += eta * good / count * (image / good - found)
        if strategy in AWAY and good < count:
            moved += eta * (found - (1 - image) / (count - good))
        found = moved
    return found


def moved_weights(
    start: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]], share: Tensor
) -> dict[str, Tensor]:
    """Return w_0 + sum_r c_r (w_r - w_0) of each tensor in `start`, for the coefficients c (R,)."""
    moved = {}
    for name, tensor in start.items():
        change = torch.zeros_like(tensor)
        for each, other in zip(share.tolist(), others, strict=True):
            change += each * (other[name] - tensor)
        moved[name] = tensor + change
    return moved


def names_to_move(model: nn.Module, strategy: int) -> list[str]:
    """Return which tensors of a state move: all parameters, and where no weights are left behind running statistics.

    A mean of variances is positive; moving away from some could make them negative.
    """
    norms = batch_norms(model) if strategy not in AWAY else {}
    statistics = [f"{norm}.{name}" if norm else name for norm in norms for name in ("running_mean", "running_var")]
    return [name for name, _ in model.named_parameters()] + statistics


class Fixing:
    """The steps of a model in place, one for each batch of failing images, and what became of each.

    Args:
        model: The model.
        others: The tensors that move, of each of R other models.
        batches: Which of these are right on the images of each batch, bool (R, B).
        measure: Returns the accuracy of a model on val, in [0, 1].
        eta: The rate of `coefficients`.
        strategy: The strategy of `coefficients`.
        unconditional: Whether every step, and the training after it, stays.
    """

    COLUMNS = ("step", "images", "stepped_percent", "accepted", "trained_percent")

    def __init__(
        self,
        model: nn.Module,
        others: Sequence[Mapping[str, Tensor]],
        batches: Sequence[Tensor],
        measure: Callable[[nn.Module], float],
        eta: float,
        strategy: int,
        *,
        unconditional: bool,
    ) -> None:
        self.model, self.others, self.batches, self.measure = model, others, batches, measure
        self.eta, self.strategy, self.unconditional = eta, strategy, unconditional
        self.step = self.started = self.validations = 0
        self.accuracy: float | None = None
        self.rows: list[list[Any]] = []
        self._stepped: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return how far the steps are, and what became of them."""
        return {name: getattr(self, name) for name in ("step", "started", "validations", "accuracy", "rows")}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the state that `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def epochs(self, epochs: Sequence[Epoch]) -> Iterator[Epoch]:
        """Yield an epoch of training after each step that stays, until there are no more epochs or steps.

        Those that an interrupted run has finished are yielded without a step.
        """
        for number, epoch in enumerate(epochs):
            if number >= self.started:
                if not self.advance():
                    return
                self.started += 1
            yield epoch

    def advance(self) -> bool:
        """Take steps until one stays, and return whether there is one; the others leave no trace."""
        if self.accuracy is None:
            self.accuracy = self._measured()
        for batch in track(self.batches[self.step :], len(self.batches) - self.step, "steps"):
            self.step += 1
            before = self._move(coefficients(batch, self.eta, self.strategy))
            if before is None and not self.unconditional:
                continue
            found = self._measured() if before else self.accuracy
            accepted = self.unconditional or found > self.accuracy
            self.rows.append([self.step, batch.shape[1], 100 * found, accepted, None])
            if accepted:
                self.accuracy = found
                self._stepped = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                return True
            self._restore(before or {})
        return False

    def after_training(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the accuracy after an epoch; where it is no better than before, the weights go back to those.

        The momentum is forgotten then.
        """
        assert self.accuracy is not None
        found = self._measured()
        self.rows[-1][-1] = 100 * found
        if self.unconditional or found > self.accuracy:
            self.accuracy = found
        else:
            self.model.load_state_dict(self._stepped)
            optimizer.state.clear()
        return self.accuracy

    def _measured(self) -> float:
        self.validations += 1
        return self.measure(self.model)

    def _move(self, share: Tensor) -> dict[str, Tensor] | None:
        """Move the weights, and return those before; None where nothing moves."""
        if not share.any():
            return None
        state = self.model.state_dict()
        before = {name: state[name].clone() for name in self.others[0]}
        self._restore(moved_weights(before, self.others, share))
        return before

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        state = self.model.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
