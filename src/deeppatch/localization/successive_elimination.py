"""Identify the top filters of each layer by successive elimination (accepts and rejects).

Images are read in order of their margin, those nearest the decision boundary first. A filter is no longer evaluated
once it is known whether it is among its layer's top k. Filters are accepted and rejected as in top-k identification
with multi-armed bandits (Bubeck, Wang and Viswanathan, ICML 2013), but with a bound for images in this order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deeppatch.localization.ablation import Ablation, Costs, DegradedBatch, correct_predictions, evaluate_filters
from deeppatch.localization.ranking import Ranking


class LayerElimination:
    """The search for the top `k` of a layer's C channels: those whose edits leave most images correctly classified.

    Attributes:
        k: The number of channels to accept.
        decision: (C,): 1 for accepted channels, -1 for rejected ones, 0 for active ones, which are still evaluated.
        correct: (C,): the number of images that are correct under the channel's edit.
        images: (C,): the number of images that were evaluated for the channel.
        unedited: (C,): the number of these that are correct without an edit.
        wins: (C, C): the number of images that are correct under the edit of i and not under that of j.
        latest_wins: (C, C): the same in the last part only.
        changed: The numbers of predictions that edits changed from correct to wrong or back, in the last two parts.
    """

    def __init__(self, channels: int, k: int) -> None:
        self.k = k
        self.decision, self.correct, self.images, self.unedited = torch.zeros(4, channels, dtype=torch.int64)
        self.wins, self.latest_wins = torch.zeros(2, channels, channels, dtype=torch.int64)
        self.changed: list[int] = []

    @property
    def active(self) -> Tensor:
        """The channels that are neither accepted nor rejected, in ascending order."""
        return (self.decision == 0).nonzero().squeeze(1)

    def record(self, correct: Tensor, unedited: Tensor) -> None:
        """Add the results of a part of the images.

        Args:
            correct: Which images are correct under the edit of each active channel, bool (active channels, N).
            unedited: Which images are correct without an edit, bool (N,).
        """
        active = self.active
        values = correct.double()
        self.latest_wins[active[:, None], active] = (values @ (1 - values).T).round().long()
        self.wins[active[:, None], active] += self.latest_wins[active[:, None], active]
        self.correct[active] += correct.sum(1)
        self.images[active] += correct.shape[1]
        self.unedited[active] += int(unedited.sum())
        self.changed = [*self.changed[-1:], int((correct != unedited).sum())]

    def decide(self, delta: float, unread: float) -> None:
        """Accept and reject the channels whose side is known with an error probability of `delta`.

        Images are read in order of increasing margin, so edits change fewer and fewer predictions. In the first of the
        `unread` parts, channels i and j are expected to differ on as many images as in the last part, plus one; the
        number then decreases from part to part by the factor by which the layer's changed predictions decreased
        between the last two parts. If each of these D images favours either channel with probability 1/2, the
        probability that j catches up with i's lead is Phi(-(lead - 1/2) / sqrt(D)). A channel is accepted when it
        stays ahead of all but k - 1 others, and rejected when k others stay ahead of it; the error probabilities of
        these comparisons are added (Bonferroni).
        """
        active = self.active
        remaining = self.k - int((self.decision == 1).sum())
        if len(self.changed) < 2 and 0 < remaining < len(active):
            return
        before, now = self.changed[0], self.changed[-1]
        decrease = min(1.0, (now + 1) / (before + 1))
        parts = sum(decrease**part for part in range(1, math.ceil(unread) + 1))
        wins, latest = (counts[active[:, None], active].double() for counts in (self.wins, self.latest_wins))
        differ = (latest + latest.T + 1) * parts
        error = torch.special.ndtr(-(wins - wins.T - 0.5) / differ.sqrt().clamp(min=1e-12))
        error.fill_diagonal_(torch.inf)
        accepted = error.sort(1).values[:, : len(active) - remaining].sum(1) <= delta
        rejected = error.sort(0).values[:remaining].sum(0) <= delta
        self.decision[active[accepted]] = 1
        self.decision[active[rejected & ~accepted]] = -1


@dataclass
class Elimination:
    """The state of the elimination in all layers.

    Args:
        layers: The state of each layer.
        batches: The number of finished batches.
        images: The number of images in them.
        current: For each layer, which images of the unfinished batch are correct under the edits evaluated so far.
    """

    layers: dict[str, LayerElimination]
    batches: int = 0
    images: int = 0
    current: dict[str, list[Tensor]] = field(default_factory=dict)

    @staticmethod
    def start(widths: Mapping[str, int], k: Mapping[str, int]) -> Elimination:
        """Return the initial state, in which all channels are active.

        Args:
            widths: The number of channels of each layer.
            k: The number of channels to accept in each layer.
        """
        return Elimination({name: LayerElimination(width, k[name]) for name, width in widths.items()})

    def state(self) -> dict[str, Any]:
        """Return the state as values for a checkpoint."""
        layers = {name: vars(layer) for name, layer in self.layers.items()}
        return {"batches": self.batches, "images": self.images, "current": self.current, "layers": layers}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.batches, self.images, self.current = state["batches"], state["images"], state["current"]
        for name, layer in self.layers.items():
            vars(layer).update(state["layers"][name])

    def image_passes(self) -> int:
        """Return the number of evaluated images, summed over all filters."""
        return sum(int(layer.images.sum()) for layer in self.layers.values())

    def ranking(self, method: str, sign: int, images: int) -> Ranking:
        """Rank accepted before active before rejected channels, and channels of the same kind by change in accuracy.

        Args:
            method: The name of the exact method.
            sign: The sign of its scores.
            images: The number of all images; those not evaluated for a channel count as unchanged.
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
    *,
    save: Callable[[Elimination], object] = lambda _elimination: None,
    tick: Callable[[str], object] = lambda _layer: None,
    costs: Costs | None = None,
) -> None:
    """Read `batches` until no filter is active, and accept or reject filters after each.

    Scores of filters that stay active to the end are exact. With several ranks, filters are distributed by `costs`.

    Args:
        elimination: The initial or resumed state; it is updated in place.
        batches: The degraded images in order of increasing margin.
        images: The number of images in all batches.
        ablation: How a channel is edited.
        delta: The error probability of a decision.
        save: Receives the state after each filter.
        tick: Receives the name of the layer after each filter.
        costs: The relative cost of a filter in each layer (default: equal).
    """
    for index, batch in enumerate(batches):
        if index < elimination.batches:
            continue
        if not any(len(layer.active) for layer in elimination.layers.values()):
            return
        edited = ablation(batch)
        evaluate = partial(correct_predictions, edited, batch)
        filters = {name: layer.active.tolist() for name, layer in elimination.layers.items()}
        evaluate_filters(elimination.current, filters, evaluate, lambda: save(elimination), tick, costs)
        unedited = evaluate(None, 0)
        for name, layer in elimination.layers.items():
            if correct := elimination.current[name]:
                layer.record(torch.stack(correct), unedited)
        del edited, evaluate  # frees the feature maps before those of the next batch are computed
        elimination.images += len(batch.labels)
        elimination.batches, elimination.current = index + 1, {}
        for layer in elimination.layers.values():
            layer.decide(delta, (images - elimination.images) / len(batch.labels))
