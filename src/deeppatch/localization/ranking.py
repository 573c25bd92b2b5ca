"""Rankings of every layer's filters, and the choice of those to patch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deeppatch.runtime import generator


@dataclass(frozen=True)
class Ranking:
    """Filters of each layer, most suspicious first (`order`), and the scores in channel order.

    A score is a difference of accuracies in [-1, 1].
    """

    method: str
    scores: dict[str, list[float]]
    order: dict[str, list[int]]

    def to_json(self) -> dict[str, Any]:
        """Return the form that is kept under output/."""
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
    ranking: Ranking, windows: dict[str, list[int]], exact: dict[str, list[float]], *, descending: bool
) -> Ranking:
    """Sort the channels of each layer's window by exact scores; the others keep their place.

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
    """Return the `count` channels of each layer that lie nearest to where `choose` cuts its ranking, in its order."""
    windows = {}
    for name, order in ranking.order.items():
        start = max(0, min(cut(len(order), ratio, side) - count // 2, len(order) - count))
        windows[name] = order[start : start + count]
    return windows


def cut(width: int, ratio: float, side: str) -> int:
    """Return how many of `width` ranked channels lie before the place where `choose` parts them."""
    chosen = _number(ratio, width)
    return width - chosen if side == "rear" else chosen


def random_ranking(widths: dict[str, int], seed: int) -> Ranking:
    """Rank every layer's channels (`widths` gives their number) in a random order by seed."""
    draw = generator(seed, "random-ranking")
    order = {name: torch.randperm(width, generator=draw).tolist() for name, width in widths.items()}
    return Ranking("random", {name: [0.0] * width for name, width in widths.items()}, order)


SIDES: dict[str, Callable[[list[int], int, torch.Generator], list[int]]] = {
    "front": lambda order, count, draw: order[:count],
    "rear": lambda order, count, draw: order[len(order) - count :],
    "random": lambda order, count, draw: [
        order[i] for i in torch.randperm(len(order), generator=draw)[:count].tolist()
    ],
}


def choose(ranking: Ranking, ratio: float, side: str, seed: int) -> dict[str, list[int]]:
    """Return floor(ratio * channels) channels of each layer, sorted, from one side of its ranking (or at random).

    Layers of which nothing is chosen are left out.
    """
    draw = generator(seed, "susp-side")
    chosen = {}
    for name, order in ranking.order.items():
        count = _number(ratio, len(order))
        if count:
            chosen[name] = sorted(SIDES[side](order, count, draw))
    return chosen


def _number(ratio: float, width: int) -> int:
    return math.floor(round(ratio * width, 9))
