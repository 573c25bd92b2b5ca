"""What all switched models share: a router decides for each sample which of several networks answers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.graph.hooks import hooked_before
from deeppatch.patching.names import AVERAGE
from deeppatch.patching.router import Answers, Maps, Router


class Routed(NamedTuple):
    """How samples were answered.

    Args:
        logits: The answers (N, classes); those of averaged networks are logarithms of probabilities.
        scores: The router's scores (N,), float64: the highest of all networks beside the original one.
        expert: Which network answered each sample (N,), 0 for the original one, int64. For a router that averages, the
            network whose answer is averaged with the original one's.
        alarm: Which samples (N,) resemble nothing in the calibration; the original network has answered these.
    """

    logits: Tensor
    scores: Tensor
    expert: Tensor
    alarm: Tensor


class Switch(nn.Module, ABC):
    """Several networks and a router; subclasses say how networks share work.

    Args:
        names: The names of the networks; the first is the original one.
        router: What decides.
    """

    def __init__(self, names: tuple[str, ...], router: Router | None = None) -> None:
        super().__init__()
        self.names = names
        self.router = router
        self.vote = False
        self.calibration: dict[str, Any] = {}

    @abstractmethod
    def look(self, pixels: Tensor) -> tuple[list[Tensor], tuple[Maps, ...]]:
        """Return what the networks continue from, and the maps of each network beside the original one."""

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks, the original one first; each maps what `look` returns first to logits."""

    def needed_router(self) -> Router:
        """Return the router; UserError where there is none yet."""
        if self.router is None:
            raise UserError("the switched model has no router yet; fit one on val first")
        if self.router.networks != len(self.names) - 1:
            raise UserError(f"the router chooses from {self.router.networks + 1} networks, not from {len(self.names)}")
        return self.router

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes)."""
        return self.answer(pixels).logits

    def route(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, classes), router scores (N,) and which samples another than the original answered (N,)."""
        found = self.answer(pixels)
        return found.logits, found.scores, found.expert > 0

    def answer(self, pixels: Tensor) -> Routed:
        """Return the answers, and how each sample was routed."""
        if not len(pixels):
            raise UserError("an empty batch has no logits")
        router = self.needed_router()
        crossing, maps = self.look(pixels)
        if router.reads_answers:
            return self._answer_by_all(router, crossing, maps)
        features = router.features_of(maps)
        scores, expert, alarm = self._choose(router, features)
        return Routed(self._run_as_needed(expert, crossing), scores, expert, alarm)

    def run_all(self, crossing: list[Tensor]) -> list[Answers]:
        """Run every network to its end."""
        return [with_features(network, crossing) for network in self.networks]

    def run_chosen(self, expert: Tensor, crossing: list[Tensor], among: Sequence[int] | None = None) -> Tensor:
        """Run each sample through the network that `expert` (N,) says, and return logits (N, classes).

        `among` are the numbers of the networks that occur (default: all are run, even for no sample).
        """
        numbers = range(len(self.names)) if among is None else among
        indices = [(expert == number).nonzero().squeeze(1) for number in numbers]
        paths = zip((self.networks[number] for number in numbers), indices, strict=True)
        logits = torch.cat([network(*(_rows(value, index) for value in crossing)) for network, index in paths])
        return torch.empty_like(logits).index_copy_(0, torch.cat(indices), logits)

    def _run_as_needed(self, expert: Tensor, crossing: list[Tensor]) -> Tensor:
        """Do the same, and run no network for no sample."""
        found = expert.unique().tolist()
        if len(found) == 1:  # no need to gather and scatter samples
            logits: Tensor = self.networks[found[0]](*crossing)
            return logits
        return self.run_chosen(expert, crossing, found)

    def _choose(self, router: Router, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, networks and alarms of samples."""
        scores, best = router.all_scores(features).max(1)
        alarm = router.alarms(features)
        switched = (scores > router.threshold) & ~alarm
        if self.vote:
            switched = (switched.float().mean() > 0.5).expand_as(switched)
        return scores, torch.where(switched, best + 1, 0), alarm

    def _answer_by_all(self, router: Router, crossing: list[Tensor], maps: tuple[Maps, ...]) -> Routed:
        answers = self.run_all(crossing)
        scores, expert, alarm = self._choose(router, router.features_of(maps, answers))
        logits = torch.stack([each.logits for each in answers])
        chosen = logits[expert, torch.arange(len(expert), device=expert.device)]
        if router.kind == AVERAGE:
            chosen = torch.where((expert > 0).unsqueeze(1), averaged(logits[0], chosen), chosen)
        return Routed(chosen, scores, expert, alarm)


def averaged(one: Tensor, two: Tensor) -> Tensor:
    """Return the logarithm of the mean of two networks' probabilities, from logits (N, classes)."""
    both = torch.stack([one.float().log_softmax(1), two.float().log_softmax(1)])
    return (both.logsumexp(0) - torch.log(torch.tensor(2.0))).to(one.dtype)


def with_features(network: nn.Module, inputs: list[Tensor]) -> Answers:
    """Run a network, and return its logits and what the linear layer that ran last has read.

    Where no linear layer has run, there are no features: (N, 0).
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    if not linear:
        logits = network(*inputs)
        return Answers(logits, logits[:, :0])
    with hooked_before(linear[-1], lambda _module, given: seen.append(given[0])):
        logits = network(*inputs)
    if len(seen) != 1 or len(seen[0]) != len(logits):
        return Answers(logits, logits[:, :0])
    return Answers(logits, seen[0].flatten(1))


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Select samples; of maps in channels-last layout in memory order, so that whole samples are copied."""
    if values.ndim != 4 or values.is_contiguous():
        return values.index_select(0, index)
    return values.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
