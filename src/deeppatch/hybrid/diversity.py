"""Choose images that cover the pool: far from each other (core-set), or with diverse gradients (BADGE)."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024


def k_centers(features: Tensor, covered: Tensor | None, budget: int) -> Tensor:
    """Return indices (B,) of images, each the farthest from all chosen before it and from `covered` images.

    Greedy k-center on Euclidean distances between features (N, D) and (R, D): Sener and Savarese, ICLR 2018, whose
    labelled training images count as covered from the start. With None nothing does, and the first image is chosen
    first. Each step takes time N x D.
    """
    squares = features.square().sum(1)
    if covered is None:
        nearest = torch.full_like(squares, torch.inf)
    else:
        nearest = torch.cat([torch.cdist(part, covered).amin(1).square() for part in features.split(CHUNK)])
    chosen: list[Tensor] = []
    for _ in range(min(budget, len(features))):
        index = nearest.argmax()
        chosen.append(index)
        gaps = (squares + squares[index] - 2 * (features @ features[index])).clamp_(min=0)
        nearest = torch.minimum(nearest, gaps)
        nearest[index] = -1  # below identical images, whose distance is 0
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long, device=features.device)


def diverse_gradients(probabilities: Tensor, features: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Return indices (B,) of images by k-means++ seeding on the gradients of the last layer (BADGE).

    Ash et al., ICLR 2020, Algorithm 1: the gradient of an image under its predicted label y is the outer product
    (e_y - p) h of C x D numbers. It is never formed, because <a h', b g'> = <a, b> <h, g>, so memory is N (C + D) and
    not N C D. The first image has the longest gradient; each further one is drawn in proportion to its squared distance
    to the nearest chosen one. The generator is on the CPU.
    """
    errors = _logit_gradients(probabilities)
    squares = errors.square().sum(1) * features.square().sum(1)
    index = squares.argmax()
    nearest = torch.full_like(squares, torch.inf, dtype=torch.float64)
    chosen: list[Tensor] = []
    free = torch.ones(len(squares), dtype=torch.bool, device=squares.device)
    uniforms = torch.rand(min(budget, len(squares)), generator=generator, dtype=torch.float64)
    for step, uniform in enumerate(uniforms):
        if step:
            index = _sample_index(torch.where(free, nearest, 0).cpu(), free.cpu(), uniform).to(squares.device)
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


def _sample_index(weights: Tensor, free: Tensor, uniform: Tensor) -> Tensor:
    """Return the index that a uniform number in [0, 1) selects by weights (N,), or among `free` ones if all are 0.

    This runs on the CPU, where sums are reproducible.
    """
    sums = torch.where(weights.sum() > 0, weights, free.to(weights)).cumsum(0)
    # a number just below 1 may be rounded up to the total; the last index with a weight is the first to reach it
    index = torch.searchsorted(sums, uniform * sums[-1], right=True)
    return torch.minimum(index, torch.searchsorted(sums, sums[-1]))
