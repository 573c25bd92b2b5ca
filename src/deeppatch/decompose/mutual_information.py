"""How much the classes' sets of features tell about each other."""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_information(members: Tensor) -> Tensor:
    """Return the mutual information, in nats, of every ordered pair of classes: float64 (C, C).

    `members` bool (C, D) says which features a class has; a feature is one draw of two 0/1 variables, so the four
    joint frequencies follow from the sizes of the sets and of their intersections, one matrix product for all pairs.
    """
    rows = members.double()
    total = rows.shape[1]
    both = rows @ rows.T / total
    size = rows.mean(1)
    a, b = size.unsqueeze(1), size.unsqueeze(0)
    cells = [(both, a, b), (a - both, a, 1 - b), (b - both, 1 - a, b), (1 - a - b + both, 1 - a, 1 - b)]
    terms = [torch.where(joint > 0.5 / total, joint * (joint / (one * other)).log(), 0) for joint, one, other in cells]
    return torch.stack(terms).sum(0).clamp_min(0)
