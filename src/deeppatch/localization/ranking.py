"""Rankings of every layer's filters, and the choice of those to patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deeppatch.runtime import generator


@dataclass(frozen=True)
class Ranking:
    """The filters of each layer, most suspicious first, and their scores.

    Args:
        method: The name of the method that scored the filters.
        scores: For each layer, the score of every output channel in channel order; the unit depends on the method.
        order: For each layer, all output channels, most suspicious first.
        facts: What the method reports beside the ranking, as plain values; not part of a comparison.

    Example:
        >>> ranking = Ranking("perfloss", {"conv": [0.1, -0.2, 0.0, 0.3]}, {"conv": [1, 2, 0, 3]})
        >>> ranking.choose(ratio=0.5)
        {'conv': [1, 2]}
        >>> ranking.choose(ratio=0.25, side="rear")
        {'conv': [3]}
    """

    method: str
    scores: dict[str, list[float]]
    order: dict[str, list[int]]
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def choose(self, ratio: float = 0.25, side: str = "front", seed: int = 2021) -> dict[str, list[int]]:
        """Return floor(ratio * channels) channels of each layer, in ascending order.

        Args:
            ratio: The share of each layer's filters, above 0, at most 1.
            side: `front` for the most suspicious filters, `rear` for the least, `random` for any.
            seed: The seed of the choice at random.

        Returns:
            The chosen channels by layer; a layer without any is left out.

        Raises:
            KeyError: When `side` is no such name.
        """
        draws = generator(seed, "susp-side")
        chosen = {}
        for name, order in self.order.items():
            count = _number(ratio, len(order))
            if count:
                chosen[name] = sorted(SIDES[side](order, count, draws))
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as values for JSON; `facts` are left out."""
        layers = {name: {"order": self.order[name], "scores": self.scores[name]} for name in self.order}
        return {"method": self.method, "layers": layers}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Ranking:
        """Read what `to_json` returned."""
        layers = content["layers"]
        return Ranking(
            content["method"],
            {name: layer["scores"] for name, layer in layers.items()},
            {name: layer["order"] for name, layer in layers.items()},
        )


def rank(method: str, scores: dict[str, list[float]], *, descending: bool) -> Ranking:
    """Sort each layer's channels by score, ties by channel index."""
    sign = -1 if descending else 1
    order = {
        name: sorted(range(len(values)), key=lambda c, values=values: (sign * values[c], c))  # type: ignore[misc]
        for name, values in scores.items()
    }
    return Ranking(method, scores, order)


def refine(
    ranking: Ranking, windows: Mapping[str, list[int]], exact: Mapping[str, list[float]], *, descending: bool
) -> Ranking:
    """Sort the channels of each layer's window by exact scores; the others keep their rank.

    `windows` are neighbours in the ranking, as `nearest_cut` returns them; `exact` has their scores in the same order.
    """
    sign = -1 if descending else 1
    order = {}
    for name, row in ranking.order.items():
        scores = dict(zip(windows[name], exact[name], strict=True))
        start = row.index(windows[name][0]) if scores else 0
        better = sorted(scores, key=lambda channel: (sign * scores[channel], channel))  # noqa: B023
        order[name] = [*row[:start], *better, *row[start + len(better) :]]
    return Ranking(ranking.method, ranking.scores, order)


def nearest_cut(ranking: Ranking, ratio: float, side: str, count: int) -> dict[str, list[int]]:
    """Return the `count` channels of each layer whose ranks are nearest to the cut that `choose` makes, in order."""
    windows = {}
    for name, order in ranking.order.items():
        start = max(0, min(cut(len(order), ratio, side) - count // 2, len(order) - count))
        windows[name] = order[start : start + count]
    return windows


def cut(width: int, ratio: float, side: str) -> int:
    """Return the index, among `width` ranked channels, at which `choose` divides them into chosen and others."""
    chosen = _number(ratio, width)
    return width - chosen if side == "rear" else chosen


def random_ranking(widths: Mapping[str, int], seed: int) -> Ranking:
    """Rank every layer's channels (`widths` gives their number) in a random order by seed."""
    draws = generator(seed, "random-ranking")
    order = {name: torch.randperm(width, generator=draws).tolist() for name, width in widths.items()}
    return Ranking("random", {name: [0.0] * width for name, width in widths.items()}, order)


SIDES: dict[str, Callable[[list[int], int, torch.Generator], list[int]]] = {
    "front": lambda order, count, draws: order[:count],
    "rear": lambda order, count, draws: order[len(order) - count :],
    "random": lambda order, count, draws: [
        order[i] for i in torch.randperm(len(order), generator=draws)[:count].tolist()
    ],
}


def _number(ratio: float, width: int) -> int:
    return math.floor(round(ratio * width, 9))
