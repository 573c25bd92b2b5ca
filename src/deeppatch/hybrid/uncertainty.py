"""Choose images by the uncertainty of their predictions: near class boundaries, by margin, or by a score."""

from __future__ import annotations

import torch
from torch import Tensor


def near_boundaries(probabilities: Tensor, budget: int) -> Tensor:
    """Return the indices (B,) of images near the boundary of every pair of classes, round by round (MCP).

    Shen et al., "Multiple-Boundary Clustering and Prioritization", ASE 2020. Images (N, C) are sorted into buckets by
    their two likeliest classes, in order, and within a bucket by the ratio of their probabilities. A round takes the
    nearest of each bucket that has images left; the last round, if the budget is too small for all, those of largest
    ratio. A budget above N selects all.
    """
    top = probabilities.topk(2, dim=1)
    ratio = top.values[:, 1] / top.values[:, 0]
    bucket = top.indices[:, 0] * probabilities.shape[1] + top.indices[:, 1]
    order = ratio.argsort(descending=True, stable=True)
    order = order[bucket[order].argsort(stable=True)]
    rounds = index_within_group(bucket[order])
    sizes = rounds.bincount()
    whole = int((sizes.cumsum(0) <= budget).sum())
    full = order[rounds < whole]
    full = full[rounds[rounds < whole].argsort(stable=True)]
    last = order[rounds == whole]
    last = last[ratio[last].argsort(descending=True, stable=True)]
    return torch.cat([full, last[: budget - len(full)]])


def index_within_group(groups: Tensor) -> Tensor:
    """Return for sorted groups (N,) the index of each entry within its group, counted from 0."""
    _, counts = groups.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(groups), device=groups.device) - starts.repeat_interleave(counts)


def largest(scores: Tensor, budget: int) -> Tensor:
    """Return the indices (B,) of the largest scores (N,), in descending order."""
    return scores.argsort(descending=True, stable=True)[:budget]


def margins(probabilities: Tensor) -> Tensor:
    """Return the gap (N,) between the probabilities (N, C) of the two likeliest classes: 0 where both are as likely.

    Scheffer, Decomain and Wrobel, "Active hidden Markov models for information extraction", IDA 2001.
    """
    top = probabilities.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def smallest_margins(probabilities: Tensor, budget: int) -> Tensor:
    """Return the indices (B,) of the images with the smallest margins, in ascending order; of equals the first."""
    return margins(probabilities).argsort(stable=True)[:budget]


def largest_entropies(probabilities: Tensor, budget: int) -> Tensor:
    """Return the indices (B,) of the images whose predictions (N, C) have the largest entropy, in descending order."""
    return largest(torch.special.entr(probabilities).sum(1), budget)
