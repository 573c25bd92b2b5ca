"""The mutual information between the sets of features of different classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deeppatch.decomposition.index_sets import membership


def mutual_information(members: Tensor) -> Tensor:
    """Return the mutual information, in nats, of every ordered pair of classes: float64 (C, C).

    `members` bool (C, D) says which features a class has. For a pair of classes, each feature is a sample of two binary
    variables, so the four joint frequencies follow from the sizes of the sets and of their intersections.
    """
    rows = members.double()
    total = rows.shape[1]
    both = rows @ rows.T / total
    size = rows.mean(1)
    a, b = size.unsqueeze(1), size.unsqueeze(0)
    cells = [(both, a, b), (a - both, a, 1 - b), (b - both, 1 - a, b), (1 - a - b + both, 1 - a, 1 - b)]
    terms = [torch.where(joint > 0.5 / total, joint * (joint / (one * other)).log(), 0) for joint, one, other in cells]
    return torch.stack(terms).sum(0).clamp_min(0)


def mean_mutual_information(sets: Mapping[str, Tensor], width: int) -> list[dict[str, Any]]:
    """Return for each named set of features (C, k), of a layer of `width` inputs, the mean over all pairs, in nats."""
    rows: list[dict[str, Any]] = []
    for name, indices in sets.items():
        pairs = mutual_information(membership(indices, width))
        rows.append({"set": name, "k": indices.shape[1], "mean_mutual_information_nats": pairs.mean().item()})
    return rows
