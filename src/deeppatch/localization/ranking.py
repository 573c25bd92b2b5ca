"""Rankings of every layer's filters, and the choice of those to patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deeppatch.errors import UserError
from deeppatch.runtime import generator
from deeppatch.storage import is_of


@dataclass(frozen=True)
class Ranking:
    """The filters of each layer in order of suspicion, and their scores.

    Args:
        method: The name of the method that scored the filters.
        scores: For each layer, the score of every output channel in channel order; the unit depends on the method.
        order: For each layer, all output channels, most suspicious first.
        facts: Further results of the method, as plain values; ignored by comparisons.

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
        """Choose floor(ratio * channels) channels of each layer.

        Args:
            ratio: The share of each layer's filters, above 0, at most 1.
            side: `front` for the most suspicious filters, `rear` for the least suspicious, `random` for any.
            seed: The seed of the random choice.

        Returns:
            The chosen channels by layer, in ascending order; layers of which none is chosen are left out.

        Raises:
            UserError: When `side` is another value, or the ratio is not from 0 to 1.
        """
        if side not in SIDES:
            raise UserError(f"side {side!r}: choose from {', '.join(SIDES)}")
        if not 0 <= ratio <= 1:
            raise UserError(f"ratio {ratio}: give a share from 0 to 1")
        random_numbers = generator(seed, "susp-side")
        chosen = {}
        for name, order in self.order.items():
            count = _count(ratio, len(order))
            if count:
                chosen[name] = sorted(SIDES[side](order, count, random_numbers))
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as values for JSON; `facts` are left out."""
        layers = {name: {"order": self.order[name], "scores": self.scores[name]} for name in self.order}
        return {"method": self.method, "layers": layers}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Ranking:
        """Return the ranking that `to_json` has converted; ValueError where the content is of another form."""
        layers = content["layers"]
        row = {"scores": [(int, float)], "order": [int]}
        if not is_of(layers, {str: {str: object}}) or not is_of(content["method"], str):
            raise ValueError("no ranking")
        if not all(is_of(layer.get(name), kind) for layer in layers.values() for name, kind in row.items()):
            raise ValueError("no ranking")
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
    """Sort the channels of each layer's window by exact scores; all others keep their rank.

    Args:
        ranking: The ranking by estimated scores.
        windows: For each layer, channels of consecutive ranks, as `nearest_cut` returns them.
        exact: The exact scores of these channels, in the same order.
        descending: Whether channels with the highest scores are the most suspicious.
    """
    sign = -1 if descending else 1
    order = {}
    for name, row in ranking.order.items():
        scores = dict(zip(windows[name], exact[name], strict=True))
        start = row.index(windows[name][0]) if scores else 0
        window = sorted(scores, key=lambda channel: (sign * scores[channel], channel))  # noqa: B023
        order[name] = [*row[:start], *window, *row[start + len(window) :]]
    return Ranking(ranking.method, ranking.scores, order)


def nearest_cut(ranking: Ranking, ratio: float, side: str, count: int) -> dict[str, list[int]]:
    """Return the `count` channels of each layer whose ranks are nearest to the cut of `choose`, in ranking order."""
    windows = {}
    for name, order in ranking.order.items():
        start = max(0, min(cut_index(len(order), ratio, side) - count // 2, len(order) - count))
        windows[name] = order[start : start + count]
    return windows


def cut_index(width: int, ratio: float, side: str) -> int:
    """Return the index at which `choose` divides `width` ranked channels into chosen and other ones."""
    chosen = _count(ratio, width)
    return width - chosen if side == "rear" else chosen


def random_ranking(widths: Mapping[str, int], seed: int) -> Ranking:
    """Rank the channels of each layer in random order; `widths` has their number by layer."""
    random_numbers = generator(seed, "random-ranking")
    order = {name: torch.randperm(width, generator=random_numbers).tolist() for name, width in widths.items()}
    return Ranking("random", {name: [0.0] * width for name, width in widths.items()}, order)


SIDES: dict[str, Callable[[list[int], int, torch.Generator], list[int]]] = {
    "front": lambda order, count, random_numbers: order[:count],
    "rear": lambda order, count, random_numbers: order[len(order) - count :],
    "random": lambda order, count, random_numbers: [
        order[i] for i in torch.randperm(len(order), generator=random_numbers)[:count].tolist()
    ],
}


def _count(ratio: float, width: int) -> int:
    return math.floor(round(ratio * width, 9))
