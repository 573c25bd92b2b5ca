"""Attack classifiers with projected gradient descent on pixels, routed ones along each of their paths too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.distributed.data_parallel import Stream
from deeppatch.errors import UserError, check_positive
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track

Logits = Callable[[Tensor], Tensor]
EPSILONS = (0.031, 2 / 255)


@dataclass(frozen=True)
class Schedule:
    """How PGD runs: the number of steps, the size of a step as a share of epsilon, and the number of random starts."""

    steps: int
    step: float
    restarts: int = 1


SCHEDULES = (Schedule(40, 1 / 30), Schedule(20, 2.5 / 20, restarts=5))


@dataclass(frozen=True)
class Robustness:
    """What attacks within an L-infinity ball did to a classifier.

    Args:
        epsilon: The radius of the ball, in pixels of [0, 1].
        correct: Which images are classified correctly as they are, bool (N,).
        robust: Which are also classified correctly after every attack, bool (N,).
    """

    epsilon: float
    correct: Tensor
    robust: Tensor

    @property
    def robust_accuracy(self) -> float:
        """The share, in percent of all images, that are classified correctly before and after every attack."""
        return 100 * self.robust.double().mean().item()


@dataclass(frozen=True)
class AttackSuccess:
    """How many of the images that two networks classify correctly an attack changes, for each of the networks."""

    images: int
    before: int
    after: int

    @property
    def percent(self) -> tuple[float, float]:
        """The attack success rates (ASR) before and after, in percent; nan where there are no such images."""
        if not self.images:
            return math.nan, math.nan
        return 100 * self.before / self.images, 100 * self.after / self.images


def attack_success(before: Robustness, after: Robustness) -> AttackSuccess:
    """Count successful attacks on the images that are classified correctly both before and after a repair.

    Args:
        before: What attacks did to the network before the repair.
        after: What they did to it afterwards, on the same images and in the same ball.

    Raises:
        UserError: When the two are not of the same images or not of the same ball.

    >>> yes, no = torch.tensor([True, True, True]), torch.tensor([True, False, False])
    >>> attack_success(Robustness(0.1, yes, no), Robustness(0.1, yes, yes))
    AttackSuccess(images=3, before=2, after=0)
    """
    if before.epsilon != after.epsilon or before.correct.shape != after.correct.shape:
        raise UserError("attacks are compared on the same images and with the same epsilon")
    both = before.correct & after.correct
    return AttackSuccess(int(both.sum()), *(int((both & ~each.robust).sum()) for each in (before, after)))


def attack(
    model: nn.Module,
    batches: Stream,
    *,
    epsilon: float = EPSILONS[0],
    paths: Mapping[str, Logits] | None = None,
    decide: Callable[[Tensor], Tensor] | None = None,
    schedules: Sequence[Schedule] = SCHEDULES,
    seed: int = 2021,
) -> Robustness:
    """Search the L-infinity ball around each image for one that a classifier classifies wrongly.

    Projected gradient descent on the cross entropy of the logits, from random starts in the ball (Madry et al., Towards
    deep learning models resistant to adversarial attacks, ICLR 2018). The switch of a routed model hides gradients:
    therefore each path is attacked by itself, then the paths together with the decision that each unattacked image
    gets. All images found in this way are classified by the model itself, and any error counts.

    Args:
        model: Maps pixels (N, 3, H, W) in [0, 1] to logits (N, C). It runs in eval mode, its parameters get no
            gradients, and its answer to an image must not depend on the batch.
        batches: Pixels and labels, on the model's device.
        epsilon: The radius of the ball, in pixels of [0, 1].
        paths: Of a routed model the networks that it routes to, each from pixels to logits (default: only the model).
        decide: The index, among the paths, of the one that the model sends each image to: from pixels to int64 (N,).
        schedules: The runs of PGD. The published one has 40 steps of epsilon / 30, with which not every start reaches
            the other side of the ball; five runs with 20 steps of epsilon / 8 do.
        seed: The random starts depend on this, on the batch and on the path.

    Returns:
        Which images are classified correctly, and which robustly.

    Raises:
        UserError: When a number is out of range, there are no images, or there is a decision without paths.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> found = attack(model, [(torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.long))], epsilon=0.1)
    >>> bool((found.robust <= found.correct).all())
    True
    """
    check_positive(epsilon=epsilon)
    for schedule in schedules:
        check_positive(steps=schedule.steps, step=schedule.step, restarts=schedule.restarts)
    if decide is not None and not paths:
        raise UserError("decide says which of the paths a model takes; give paths too")
    attacked: Mapping[str, Logits] = paths if paths else {"model": model}
    correct, robust = [], []
    with ExitStack() as stack:
        for network in (model, *(path for path in attacked.values() if isinstance(path, nn.Module))):
            stack.enter_context(eval_mode(network))
        for batch, (pixels, labels) in enumerate(track(batches, len(batches), "attacking")):
            right = _predicted(model, pixels) == labels
            standing = right.nonzero().squeeze(1)  # those that no attack has changed yet
            for start, make, schedule in _runs(pixels, attacked, decide, schedules, (seed, batch)):
                if not len(standing):
                    break
                own, truth = pixels[standing], labels[standing]
                found = pgd(make(own), own, truth, epsilon * start[standing], epsilon=epsilon, schedule=schedule)
                standing = standing[_predicted(model, found) == truth]
            correct.append(right)
            robust.append(torch.zeros_like(right).index_fill_(0, standing, True))
    if not correct:
        raise UserError("there are no images to attack")
    return Robustness(epsilon, torch.cat(correct), torch.cat(robust))


def _runs(
    pixels: Tensor,
    paths: Mapping[str, Logits],
    decide: Callable[[Tensor], Tensor] | None,
    schedules: Sequence[Schedule],
    seed: tuple[int, int],
) -> Iterator[tuple[Tensor, Callable[[Tensor], Logits], Schedule]]:
    """Yield the start of each run in [-1, 1], what it attacks as a function of the unattacked images, its schedule."""
    for name, make in _targets(paths, decide):
        for place, schedule in enumerate(schedules):
            for restart in range(schedule.restarts):
                generator = runtime.generator(seed[0], "pgd", seed[1], name, place, restart)
                yield 2 * torch.rand(pixels.shape, generator=generator).to(pixels.device) - 1, make, schedule


def pgd(
    logits_of: Logits, pixels: Tensor, labels: Tensor, start: Tensor, *, epsilon: float, schedule: Schedule
) -> Tensor:
    """Return for each image the worst of those that one run of PGD visits in its ball.

    x <- clip(x + step sign(d loss / d x)) to within epsilon of the image and to [0, 1]. Worst is one that is classified
    wrongly, and among several the one with the largest loss.

    Args:
        logits_of: Maps pixels (N, 3, H, W) to logits (N, C), differentiable.
        pixels: The images (N, 3, H, W) in [0, 1].
        labels: Their labels (N,).
        start: Where to start, relative to the images, of the same shape.
        epsilon: The radius of the ball.
        schedule: The number and the size of the steps.

    Returns:
        Pixels (N, 3, H, W) in [0, 1].
    """
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
    current = torch.clamp(pixels + start, low, high)
    worst = current
    largest = torch.full(labels.shape, -torch.inf, device=pixels.device)
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    for step in range(schedule.steps + 1):
        with torch.enable_grad():
            variable = current.detach().requires_grad_()
            logits = logits_of(variable)
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            if step < schedule.steps:
                # the logits of a path may not depend on the pixels at all
                (gradient,) = torch.autograd.grad(losses.sum(), variable, allow_unused=True, materialize_grads=True)
        losses, now_wrong = losses.detach(), logits.detach().argmax(1) != labels
        better = (now_wrong & ~wrong) | ((now_wrong == wrong) & (losses > largest))
        worst = torch.where(better.view(-1, 1, 1, 1), current, worst)
        largest, wrong = torch.where(better, losses, largest), wrong | now_wrong
        if step < schedule.steps:
            current = torch.clamp(current + schedule.step * epsilon * gradient.sign(), low, high)
    return worst


def _targets(
    paths: Mapping[str, Logits], decide: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[str, Callable[[Tensor], Logits]]]:
    """Yield what is attacked, by name: a function of the unattacked images that returns the one to be attacked."""
    for name, path in paths.items():
        yield name, lambda _pixels, path=path: path  # type: ignore[misc]
    if decide is not None:
        yield "decision held", lambda pixels: _held(list(paths.values()), _decided(decide, pixels))


@torch.no_grad()
def _decided(decide: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    return decide(pixels).long()


def _held(paths: Sequence[Logits], decision: Tensor) -> Logits:
    """Return the routed model with a fixed decision, the index of a path for each image (N,)."""
    rows = [(decision == index).nonzero().squeeze(1) for index in range(len(paths))]

    def logits_of(pixels: Tensor) -> Tensor:
        parts = [path(pixels[index]) for path, index in zip(paths, rows, strict=True) if len(index)]
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]

    return logits_of


@torch.no_grad()
def _predicted(model: nn.Module, pixels: Tensor) -> Tensor:
    return model(pixels).argmax(1)
