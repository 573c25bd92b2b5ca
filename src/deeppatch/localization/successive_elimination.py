"""Choose the top filters of each layer by successive elimination (accepts and rejects).

Filters are evaluated on the images nearest the decision boundary first; a filter is no longer evaluated once it is
known whether it is among its layer's top k. Filters are accepted and rejected as in top-k identification by multi-armed
bandits (Bubeck, Wang and Viswanathan, ICML 2013), with a bound of our own for images in the order of their margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeppatch.localization.ablation import Ablation, Costs, DegradedBatch, correct_images, evaluate_filters
from deeppatch.localization.ranking import Ranking


class LayerElimination:
    """The search for the top `k` of a layer's C channels: those under whose edit most images are correct.

    `decision` (C,) is 1 for accepted channels, -1 for rejected ones, 0 for active ones, which are still evaluated;
    `correct` (C,) counts images that are correct under a channel's edit, `wins` (C, C) those that are correct under i's
    and not under j's, `latest_wins` (C, C) the same in the last part only; `images` and `unedited` (C,) are the numbers
    of images that were read for the channel, and of those that are correct without an edit. `changed` has the numbers
    of answers that edits changed in the last two parts.
    """

    def __init__(self, channels: int, k: int) -> None:
        self.k = k
        self.decision, self.correct, self.images, self.unedited = torch.zeros(4, channels, dtype=torch.int64)
        self.wins, self.latest_wins = torch.zeros(2, channels, channels, dtype=torch.int64)
        self.changed: list[int] = []

    @property
    def active(self) -> Tensor:
        """Return the channels that are neither accepted nor rejected, in ascending order."""
        return (self.decision == 0).nonzero().squeeze(1)

    def record(self, answers: Tensor, unedited: Tensor) -> None:
        """Count a part: which of its N images are correct, bool (A, N) for the active channels and (N,) unedited."""
        active = self.active
        values = answers.double()
        self.latest_wins[active[:, None], active] = (values @ (1 - values).T).round().long()
        self.wins[active[:, None], active] += self.latest_wins[active[:, None], active]
        self.correct[active] += answers.sum(1)
        self.images[active] += answers.shape[1]
        self.unedited[active] += int(unedited.sum())
        self.changed = [*self.changed[-1:], int((answers != unedited).sum())]

    def decide(self, delta: float, unread: float) -> None:
        """Accept and reject the channels that are known with an error probability of `delta`.

        Images are read by rising margin, so edits change fewer and fewer answers. On the images that are not yet read
        (`unread` parts), channels i and j are expected to differ on as many images as in the last part, plus one,
        decreasing from part to part as the layer's changed answers did between the last two parts. If these D images
        favour either channel equally, j makes up for i's lead with probability Phi(-(lead - 1/2) / sqrt(D)). A channel
        is accepted when it stays ahead of all but k - 1 others, rejected when k others stay ahead of it: the
        probabilities of these comparisons are added up (Bonferroni).
        """
        active = self.active
        left = self.k - int((self.decision == 1).sum())
        if len(self.changed) < 2 and 0 < left < len(active):
            return
        before, now = self.changed[0], self.changed[-1]
        decrease = min(1.0, (now + 1) / (before + 1))
        parts = sum(decrease**part for part in range(1, math.ceil(unread) + 1))
        wins, latest = (counts[active[:, None], active].double() for counts in (self.wins, self.latest_wins))
        differ = (latest + latest.T + 1) * parts
        error = torch.special.ndtr(-(wins - wins.T - 0.5) / differ.sqrt().clamp(min=1e-12))
        error.fill_diagonal_(torch.inf)
        accepted = error.sort(1).values[:, : len(active) - left].sum(1) <= delta
        rejected = error.sort(0).values[:left].sum(0) <= delta
        self.decision[active[accepted]] = 1
        self.decision[active[rejected & ~accepted]] = -1


@dataclass
class Elimination:
    """The elimination in every layer: `batches` are finished; `current` has the answers (True: correct) of the next."""

    layers: dict[str, LayerElimination]
    batches: int = 0
    images: int = 0
    current: dict[str, list[Tensor]] = field(default_factory=dict)

    @staticmethod
    def start(widths: Mapping[str, int], k: Mapping[str, int]) -> Elimination:
        """Return the state in which all channels of each layer (`widths`) are active; `k` of each are searched for."""
        return Elimination({name: LayerElimination(width, k[name]) for name, width in widths.items()})

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        layers = {name: vars(layer) for name, layer in self.layers.items()}
        return {"batches": self.batches, "images": self.images, "current": self.current, "layers": layers}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.batches, self.images, self.current = state["batches"], state["images"], state["current"]
        for name, layer in self.layers.items():
            vars(layer).update(state["layers"][name])

    def image_passes(self) -> int:
        """Return the number of images that were evaluated, summed over all filters."""
        return sum(int(layer.images.sum()) for layer in self.layers.values())

    def ranking(self, method: str, sign: int, images: int) -> Ranking:
        """Rank accepted channels before active before rejected ones, then by the change of accuracy over `images`.

        `sign` is that of the exact scores. An image that was not evaluated for a channel counts as unchanged.
        """
        scores, order = {}, {}
        for name, layer in self.layers.items():
            change = (layer.correct - layer.unedited).double() / images
            scores[name] = (sign * change).tolist()
            keys = list(zip((-layer.decision).tolist(), (-change).tolist(), range(len(change)), strict=True))
            order[name] = [channel for _, _, channel in sorted(keys)]
        return Ranking(method, scores, order)


@torch.inference_mode()
def eliminate(
    elimination: Elimination,
    batches: Iterable[DegradedBatch],
    images: int,
    ablation: Ablation,
    delta: float,
    keep: Callable[[Elimination], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> None:
    """Read `batches` until no filter is active, and accept or reject filters after each.

    Scores of filters that stay active to the end are exact. Several ranks share the filters of a batch by `costs`.

    Args:
        elimination: The state to begin with, updated in place.
        batches: The degraded images by rising margin.
        images: The number of images in all batches.
        ablation: How a channel is edited.
        delta: The error probability of a decision.
        keep: Receives the state after each filter.
        tick: Receives the layer's name after each filter.
        costs: The relative cost of a filter in each layer; equal for all where it is not given.
    """
    for index, batch in enumerate(batches):
        if index < elimination.batches:
            continue
        if not any(len(layer.active) for layer in elimination.layers.values()):
            return
        edited = ablation(batch)
        evaluate = partial(correct_images, edited, batch)
        filters = {name: layer.active.tolist() for name, layer in elimination.layers.items()}
        evaluate_filters(elimination.current, filters, evaluate, lambda: keep(elimination), tick, costs)
        unedited = evaluate(None, 0)
        for name, layer in elimination.layers.items():
            if answers := elimination.current[name]:
                layer.record(torch.stack(answers), unedited)
        del edited, evaluate  # frees the maps before those of the next batch are computed
        elimination.images += len(batch.labels)
        elimination.batches, elimination.current = index + 1, {}
        for layer in elimination.layers.values():
            layer.decide(delta, (images - elimination.images) / len(batch.labels))
