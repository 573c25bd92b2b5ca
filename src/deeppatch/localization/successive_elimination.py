"""Race filters: score them on the images nearest the decision boundary first; each leaves when its side is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeppatch.localization.ablation import Ablation, Costs, Sample, answer, right
from deeppatch.localization.ranking import Ranking


class LayerElimination:
    """The race of a layer's C channels for the `places` that count as suspicious.

    `side` (C,) is 1 for channels inside the chosen part, -1 outside, 0 while they race; `right` (C,) counts images that
    are right under a channel's edit, `apart` (C, C) those that are right under i's and not under j's, `latest` (C, C)
    the same in the last part alone; `images` and `base` (C,) are how many were read for the channel, and how many of
    them are right unedited. `turned` counts the answers that edits turned, in the last two parts.
    """

    def __init__(self, channels: int, places: int) -> None:
        self.places = places
        self.side, self.right, self.images, self.base = torch.zeros(4, channels, dtype=torch.int64)
        self.apart, self.latest = torch.zeros(2, channels, channels, dtype=torch.int64)
        self.turned: list[int] = []

    @property
    def racing(self) -> Tensor:
        """Return the channels that have not left, in their order."""
        return (self.side == 0).nonzero().squeeze(1)

    def enter(self, answers: Tensor, base: Tensor) -> None:
        """Count a part: which of its N images are right, (R, N) for the channels that race and (N,) unedited."""
        here = self.racing
        values = answers.double()
        self.latest[here[:, None], here] = (values @ (1 - values).T).round().long()
        self.apart[here[:, None], here] += self.latest[here[:, None], here]
        self.right[here] += answers.sum(1)
        self.images[here] += answers.shape[1]
        self.base[here] += int(base.sum())
        self.turned = [*self.turned[-1:], int((answers != base).sum())]

    def leave(self, delta: float, unread: float) -> None:
        """Let channels leave whose side is known with an error probability of `delta`; `unread` is in parts.

        Images are read by rising margin, so edits turn fewer and fewer answers. On what is unread, i and j will differ
        on about as many images as in the last part, and one, falling from part to part as the layer's turned answers
        fell between the last two parts. If these D images favour either alike, j makes up for i's lead with probability
        Phi(-(lead - 1/2) / sqrt(D)). A channel is inside when it stays ahead of all but the places' number of others,
        outside when so many stay ahead of it: the probabilities of these comparisons are added up (Bonferroni).
        """
        here = self.racing
        left = self.places - int((self.side == 1).sum())
        if len(self.turned) < 2 and 0 < left < len(here):
            return
        before, now = self.turned[0], self.turned[-1]
        fall = min(1.0, (now + 1) / (before + 1))
        parts = sum(fall**part for part in range(1, math.ceil(unread) + 1))
        wins, latest = (counts[here[:, None], here].double() for counts in (self.apart, self.latest))
        differ = (latest + latest.T + 1) * parts
        error = torch.special.ndtr(-(wins - wins.T - 0.5) / differ.sqrt().clamp(min=1e-12))
        error.fill_diagonal_(torch.inf)
        inside = error.sort(1).values[:, : len(here) - left].sum(1) <= delta
        outside = error.sort(0).values[:left].sum(0) <= delta
        self.side[here[inside]] = 1
        self.side[here[outside & ~inside]] = -1


@dataclass
class Elimination:
    """How far a race has come: `samples` are done, and of the next one the answers `now` (True: right) by layer."""

    lanes: dict[str, LayerElimination]
    samples: int = 0
    images: int = 0
    now: dict[str, list[Tensor]] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        lanes = {name: vars(lane) for name, lane in self.lanes.items()}
        return {"samples": self.samples, "images": self.images, "now": self.now, "lanes": lanes}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.samples, self.images, self.now = state["samples"], state["images"], state["now"]
        for name, lane in self.lanes.items():
            vars(lane).update(state["lanes"][name])

    def passes(self) -> int:
        """Return how many images have been read for all filters together."""
        return sum(int(lane.images.sum()) for lane in self.lanes.values())

    def ranking(self, method: str, sign: int, images: int) -> Ranking:
        """Rank by side first, then by the change of accuracy over all `images`; `sign` as for exact scores.

        What a channel has not read, far from the decision boundary, counts as unchanged.
        """
        scores, order = {}, {}
        for name, lane in self.lanes.items():
            change = (lane.right - lane.base).double() / images
            scores[name] = (sign * change).tolist()
            keys = list(zip((-lane.side).tolist(), (-change).tolist(), range(len(change)), strict=True))
            order[name] = [channel for _, _, channel in sorted(keys)]
        return Ranking(method, scores, order)


@torch.inference_mode()
def run(
    race: Elimination,
    samples: Iterable[Sample],
    images: int,
    ablation: Ablation,
    delta: float,
    keep: Callable[[Elimination], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> None:
    """Race over `samples`, by rising margin and of `images` in all, until every filter has left or all are read.

    Most suspicious are those under whose edit most images are right. `keep` receives the race after each filter, `tick`
    its layer. Of filters that race to the end, the scores are exact. Several ranks share the filters of a sample out by
    `costs`.
    """
    number = 0
    for number, sample in enumerate(samples, 1):
        if number <= race.samples:
            continue
        if not any(len(lane.racing) for lane in race.lanes.values()):
            return
        edited = ablation(sample)
        ask = partial(right, edited, sample)
        filters = {name: lane.racing.tolist() for name, lane in race.lanes.items()}
        answer(race.now, filters, ask, lambda: keep(race), tick, costs)
        base = ask(None, 0)
        for name, lane in race.lanes.items():
            if answers := race.now[name]:
                lane.enter(torch.stack(answers), base)
        del edited, ask  # its maps make room for those of the next sample
        race.images += len(sample.labels)
        race.samples, race.now = number, {}
        for lane in race.lanes.values():
            lane.leave(delta, (images - race.images) / len(sample.labels))


def begin(widths: Mapping[str, int], places: Mapping[str, int]) -> Elimination:
    """Return the start of a race of all channels of each layer (`widths`) for its `places`."""
    return Elimination({name: LayerElimination(width, places[name]) for name, width in widths.items()})
