"""Choose images that cover what the model is uncertain about: each stands for the images whose features are near."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.progress import track

KERNEL_VALUES = 2**24  # of the kernel between some images and the whole pool that are in memory at once
FIRST_CANDIDATES = 16  # whose gains are computed again together, at first; twice as many each further time
SAMPLED_IMAGES = 1_000
LEAST_RADIUS = 1e-3


def uncertainty_herding(features: Tensor, weights: Tensor, covered: Tensor, budget: int, radius: float) -> Tensor:
    """Return indices (B,) of images that together cover the pool, each the one that adds most to those before it.

    Bae, Oliveira and Sutherland, "Uncertainty Herding", ICLR 2025: the coverage of the pool by a set S is
    sum_i w_i max_{s in S} k(i, s), with the uncertainty w_i of an image as its weight and the kernel
    k(i, s) = exp(-|f_i - f_s|^2 / r^2) of features of length 1. S starts with the `covered` images. A gain can only
    fall as S grows, so an old gain bounds the new one: gains are computed again only until the largest is a new one,
    and the choice is that of computing all of them in each step. All images of the pool are candidates, and all are to
    be covered. Memory is that of 2^24 values of the kernel, time is N x (N + R) x D once and for each label N x D times
    the gains that are computed again. Where all weights are 0, all images count alike.

    Args:
        features: Of the pool, (N, D); they are scaled to length 1.
        weights: The uncertainty of each image, 0 or more, (N,).
        covered: Features of images whose labels are known, (R, D).
        budget: The number of images to choose; above N, all are chosen.
        radius: The distance r at which the kernel falls to 1/e.
    """
    points = F.normalize(features.float(), dim=1)
    weights = weights.float() if weights.any() else torch.ones(len(points), device=points.device)
    rows = max(1, KERNEL_VALUES // max(1, len(points)))
    coverage = torch.zeros_like(weights)
    for part in F.normalize(covered.float(), dim=1).split(rows) if len(covered) else ():
        coverage = torch.maximum(coverage, _kernel(part, points, radius).amax(0))
    gains = torch.cat([_gains(part, points, radius, coverage, weights) for part in points.split(rows)])
    chosen: list[Tensor] = []
    for _ in track(range(min(budget, len(points))), min(budget, len(points)), "coverage"):
        best = _best(gains, points, radius, coverage, weights)
        chosen.append(best)
        gains[best] = -1
        coverage = torch.maximum(coverage, _kernel(points[best : best + 1], points, radius)[0])
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long, device=features.device)


def covering_radius(features: Tensor, budget: int, generator: torch.Generator) -> float:
    """Return the mean distance from an image to the one that completes a B-th of the pool around it.

    B images with such a neighbourhood could just cover the pool, so that the radius falls as the budget grows. The mean
    is over at most 1,000 images, sampled from features (N, D) of length 1. The generator is on the CPU.
    """
    points = F.normalize(features.float(), dim=1)
    sampled = torch.randperm(len(points), generator=generator)[:SAMPLED_IMAGES].to(points.device)
    share = min(len(points), max(1, len(points) // max(1, budget)) + 1)  # the image itself is the nearest
    parts = points[sampled].split(max(1, KERNEL_VALUES // len(points)))
    # on the CPU, because what CUDA does for this is not deterministic
    distances = [torch.cdist(part, points).cpu().kthvalue(share, dim=1).values for part in parts]
    return max(LEAST_RADIUS, torch.cat(distances).mean().item())


def _best(gains: Tensor, points: Tensor, radius: float, coverage: Tensor, weights: Tensor) -> Tensor:
    """Return the index of the image that adds most; `gains` (N,) bound from above what each adds, and are updated."""
    new = gains < 0  # what is chosen already stays below all others
    candidates = FIRST_CANDIDATES
    while True:
        best = gains.argmax()
        if new[best]:
            return best
        top = gains.topk(min(candidates, len(gains))).indices
        top = top[~new[top]]
        for part in top.split(max(1, KERNEL_VALUES // len(points))):
            gains[part] = _gains(points[part], points, radius, coverage, weights)
        new[top] = True
        candidates *= 2


def _kernel(part: Tensor, points: Tensor, radius: float) -> Tensor:
    """Return the kernel (P, N) between some points (P, D) and all points (N, D) of length 1."""
    return (part @ points.T).sub_(1).clamp_(max=0).mul_(2 / radius**2).exp_()


def _gains(part: Tensor, points: Tensor, radius: float, coverage: Tensor, weights: Tensor) -> Tensor:
    """Return by how much each of some points (P, D) adds to the coverage (N,) of all."""
    return _kernel(part, points, radius).sub_(coverage).clamp_(min=0) @ weights
