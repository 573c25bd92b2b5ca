"""Optimizers and the schedules of their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR


def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    steps: int,
    milestones: Sequence[int] | None = None,
    nesterov: bool = False,
) -> tuple[SGD, LRScheduler]:
    """Return SGD and a cosine schedule that anneals the learning rate to zero over `steps` batches.

    With `milestones` the rate is divided by ten after each of these numbers of batches instead.
    """
    optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    if milestones is not None:
        return optimizer, MultiStepLR(optimizer, list(milestones))
    return optimizer, CosineAnnealingLR(optimizer, T_max=max(1, steps))


def constant_sgd(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
) -> tuple[SGD, ConstantLR]:
    """Return SGD and a schedule that keeps its learning rate constant."""
    optimizer = SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return optimizer, _constant(optimizer)


def adam(parameters: Iterable[nn.Parameter], *, lr: float) -> tuple[Adam, ConstantLR]:
    """Return Adam and a schedule that keeps its learning rate constant."""
    optimizer = Adam(parameters, lr=lr)
    return optimizer, _constant(optimizer)


def _constant(optimizer: torch.optim.Optimizer) -> ConstantLR:
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def adam_with_initial_rate(
    parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter], *, lr: float, initial_lr: float, steps: int
) -> tuple[Adam, LRScheduler]:
    """Return Adam with rate `lr`; for the first `steps` batches the `others` have the rate `initial_lr`."""
    groups = [{"params": list(group)} for group in (parameters, others)]
    optimizer = Adam([group for group in groups if group["params"]], lr=lr)
    rates = [lambda _step: 1.0, lambda step: initial_lr / lr if step < steps else 1.0]
    return optimizer, LambdaLR(optimizer, rates[: len(optimizer.param_groups)])


class FreshMoments(LRScheduler):
    """Another schedule, and an optimizer that forgets its moments after each of some numbers of batches, `restarts`.

    That is a new optimizer at each of them, with the rates of `schedule`.
    """

    def __init__(self, schedule: LRScheduler, restarts: Sequence[int]) -> None:
        self.schedule = schedule
        self.restarts = frozenset(restarts)
        self.optimizer = schedule.optimizer

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the next batch, and forget the moments where it begins anew."""
        self.schedule.step()
        if self.schedule.last_epoch in self.restarts:
            self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the schedule."""
        self.schedule.load_state_dict(state_dict)
