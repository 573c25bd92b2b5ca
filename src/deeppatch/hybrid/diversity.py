"""Which images to label so that they cover the pool: far from each other, or also with large gradients."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024


def k_centers(features: Tensor, covered: Tensor, budget: int) -> Tensor:
    """Return indices (B,) of images, each the farthest from all chosen before it and from `covered` images.

    Greedy k-center on Euclidean distances between features (N, D) and (R, D): Sener and Savarese, ICLR 2018, whose
    labelled training images count as covered from the start. One running minimum is kept: N x D a step.
    """
    squares = features.square().sum(1)
    nearest = torch.cat([torch.cdist(part, covered).amin(1).square() for part in features.split(CHUNK)])
    chosen: list[Tensor] = []
    for _ in range(min(budget, len(features))):
        index = nearest.argmax()
        chosen.append(index)
        gaps = (squares + squares[index] - 2 * (features @ features[index])).clamp_(min=0)
        nearest = torch.minimum(nearest, gaps)
        nearest[index] = -1  # behind copies of it, whose distance is 0
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long, device=features.device)


def diverse_gradients(probabilities: Tensor, features: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Return indices (B,) of images by k-means++ seeding on the gradients of the last layer (BADGE).

    Ash et al., ICLR 2020, Algorithm 1: the gradient of an image under its predicted label y is the outer product
    (e_y - p) h of C x D numbers. None is ever made: <a h', b g'> = <a, b> <h, g>, so that memory is N (C + D) where the
    product takes N C D. The first is the longest; then each is drawn in proportion to its squared distance to the
    nearest chosen one. The generator is on the CPU.
    """
    errors = _logit_gradients(probabilities)
    squares = errors.square().sum(1) * features.square().sum(1)
    index = squares.argmax()
    nearest = torch.full_like(squares, torch.inf, dtype=torch.float64)
    chosen: list[Tensor] = []
    free = torch.ones(len(squares), dtype=torch.bool, device=squares.device)
    lots = torch.rand(min(budget, len(squares)), generator=generator, dtype=torch.float64)
    for step, lot in enumerate(lots):
        if step:
            index = _sample_index(torch.where(free, nearest, 0).cpu(), free.cpu(), lot).to(squares.device)
        chosen.append(index)
        free[index] = False
        products = (errors @ errors[index]) * (features @ features[index])
        nearest = torch.minimum(nearest, (squares + squares[index] - 2 * products).clamp(min=0).double())
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long, device=squares.device)


def _logit_gradients(probabilities: Tensor) -> Tensor:
    """Return e_y - p (N, C), y being the likeliest class: the gradient of the cross entropy, but for its sign."""
    errors = -probabilities
    errors[torch.arange(len(errors), device=errors.device), probabilities.argmax(1)] += 1
    return errors


def _sample_index(weights: Tensor, free: Tensor, lot: Tensor) -> Tensor:
    """Return the index that a lot in [0, 1) falls on, by weights (N,); where all are 0, by those that are `free`.

    On the CPU, where sums repeat to the last bit.
    """
    sums = torch.where(weights.sum() > 0, weights, free.to(weights)).cumsum(0)
    # a lot just below 1 may round up to the whole sum; the last index of any weight is the first to reach it
    index = torch.searchsorted(sums, lot * sums[-1], right=True)
    return torch.minimum(index, torch.searchsorted(sums, sums[-1]))
