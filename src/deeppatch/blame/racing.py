"""Race filters: score them on growing parts of the data, and let each leave as soon as its side of the cut is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.blame.ablation import Ablation, Costs, Edited, Sample, share
from deeppatch.blame.ranking import Ranking


class Lane:
    """The race of a layer's C channels for the `places` that count as suspicious.

    `side` (C,) is 1 for channels inside the chosen part, -1 outside, 0 while they race; `right` (C,) counts images that
    are right under a channel's edit, `apart` (C, C) those that are right under i's and not under j's; `images` and
    `base` (C,) are how many were read for the channel, and how many of them are right unedited.
    """

    def __init__(self, channels: int, places: int) -> None:
        self.places = places
        self.side, self.right, self.images, self.base = torch.zeros(4, channels, dtype=torch.int64)
        self.apart = torch.zeros(channels, channels, dtype=torch.int64)

    @property
    def racing(self) -> Tensor:
        """Return the channels that have not left, in their order."""
        return (self.side == 0).nonzero().squeeze(1)

    def enter(self, answers: Tensor, base: int) -> None:
        """Count the next images: `answers` (R, N) says whether each is right, for the channels that race."""
        here = self.racing
        values = answers.double()
        self.right[here] += answers.sum(1)
        self.apart[here[:, None], here] += (values @ (1 - values).T).round().long()
        self.images[here] += answers.shape[1]
        self.base[here] += base

    def leave(self, delta: float, unread: float) -> None:
        """Let channels leave whose side is known with an error probability of `delta`; `unread` is a share of the data.

        That i is better than j is tested by the images on which they differ (McNemar's test with continuity correction,
        its variance reduced by sampling without replacement). A channel is inside when it beats all but the places'
        number of others, outside when so many beat it; the error probabilities of these comparisons are added up.
        """
        here = self.racing
        left = self.places - int((self.side == 1).sum())
        wins = self.apart[here[:, None], here].double()
        differ = wins + wins.T
        z = (wins - wins.T - 1) / (differ * unread).sqrt().clamp(min=1e-12)
        error = torch.special.ndtr(-z)  # of the statement that i is better than j
        error.fill_diagonal_(torch.inf)
        inside = error.sort(1).values[:, : len(here) - left].sum(1) <= delta
        outside = error.sort(0).values[:left].sum(0) <= delta
        self.side[here[inside]] = 1
        self.side[here[outside & ~inside]] = -1


@dataclass
class Race:
    """How far a race has come: `samples` are done, and of the next one the answers `now` (True: right) by layer."""

    lanes: dict[str, Lane]
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

    def ranking(self, method: str, sign: int) -> Ranking:
        """Rank by side first, then by the change of accuracy in what was read; `sign` as for exact scores."""
        scores, order = {}, {}
        for name, lane in self.lanes.items():
            change = (lane.right - lane.base).double() / lane.images.clamp(min=1)
            scores[name] = (sign * change).tolist()
            keys = list(zip((-lane.side).tolist(), (-change).tolist(), range(len(change)), strict=True))
            order[name] = [channel for _, _, channel in sorted(keys)]
        return Ranking(method, scores, order)


@torch.inference_mode()
def run(
    race: Race, samples: Iterable[Sample], images: int, ablation: Ablation, delta: float,
    keep: Callable[[Race], object], tick: Callable[[str], object], costs: Costs | None = None,
) -> None:  # fmt: skip
    """Race over `samples`, in random order and of `images` in all, until every filter has left or all are read.

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
        base = int((edited(None, 0).argmax(1) == sample.labels).sum())
        filters = {name: lane.racing.tolist() for name, lane in race.lanes.items()}
        if runtime.ranks() > 1:
            share(race.now, filters, costs, partial(_right_under, edited, sample), tick)
            keep(race)
        for name, channels in filters.items():
            answers = race.now.setdefault(name, [])
            for channel in channels[len(answers) :]:
                answers.append(_right_under(edited, sample, name, channel))
                keep(race)
                tick(name)
        for name, lane in race.lanes.items():
            if answers := race.now[name]:
                lane.enter(torch.stack(answers), base)
        race.images += len(sample.labels)
        race.samples, race.now = number, {}
        for lane in race.lanes.values():
            lane.leave(delta, 1 - race.images / images)


def _right_under(edited: Edited, sample: Sample, name: str, channel: int) -> Tensor:
    return (edited(name, channel).argmax(1) == sample.labels).cpu()


def begin(widths: Mapping[str, int], places: Mapping[str, int]) -> Race:
    """Return the start of a race of all channels of each layer (`widths`) for its `places`."""
    return Race({name: Lane(width, places[name]) for name, width in widths.items()})
