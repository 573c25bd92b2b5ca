"""Optimizers and the schedules of their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
