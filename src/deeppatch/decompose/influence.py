"""Which features carry a class's decision: how often each is among the strongest of the class's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeppatch.decompose.features import Features


@dataclass(frozen=True)
class Influence:
    """What the training images say about C classes and D features, all float64 in [0, 1].

    `frequency` (C, D): the share of a class's images that have the feature among their k strongest. `share` (C, D): the
    feature's mean part of the sum of an image's responses. `mass` (C,): the mean part that an image's k strongest hold.
    """

    k: int
    frequency: Tensor
    share: Tensor
    mass: Tensor

    def indices(self) -> Tensor:
        """Return each class's k most frequent features, int64 (C, k), most frequent first; then by share, index."""
        by_share = self.share.sort(dim=1, descending=True, stable=True).indices
        frequency = self.frequency.gather(1, by_share)
        order = frequency.sort(dim=1, descending=True, stable=True).indices
        return by_share.gather(1, order)[:, : self.k]


def measure(features: Features, classes: int, ks: Sequence[int]) -> list[Influence]:
    """Measure influence for each number k of strongest features (Badola et al., 2023: class-influential features).

    Every image's responses are scaled to sum 1 and ranked, equal ones by index. Every class must have an image, and
    every k must be 1 to D; ValueError otherwise.
    """
    width = features.values.shape[1]
    if not all(1 <= k <= width for k in ks):
        raise ValueError(f"k must be 1 to {width}")
    frequency = torch.zeros(len(ks), classes, width, dtype=torch.float64)
    share = torch.zeros(classes, width, dtype=torch.float64)
    mass = torch.zeros(len(ks), classes, dtype=torch.float64)
    for label in range(classes):
        responses = features.values[features.labels == label].double()
        if not len(responses):
            raise ValueError(f"class {label} has no image")
        parts = responses / responses.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        share[label] = parts.mean(0)
        ranked = parts.sort(dim=1, descending=True, stable=True)
        for place, k in enumerate(ks):
            counts = torch.bincount(ranked.indices[:, :k].flatten(), minlength=width)
            frequency[place, label] = counts.double() / len(parts)
            mass[place, label] = ranked.values[:, :k].sum(1).mean()
    return [Influence(k, frequency[place], share, mass[place]) for place, k in enumerate(ks)]
