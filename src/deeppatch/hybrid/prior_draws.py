"""Bootstrap draws of the class prior of a pool: over its images, and over those of val, which the calibration is of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.metrics.logit_scaling import Calibration

TOLERANCE = 1e-6  # EM stops where no share changes by more
# draws, and those that are computed at a time; the images of the pool that they are made of at most; iterations of each
DRAWS, BLOCK, MOST_IMAGES, ITERATIONS_OF_DRAW = 100, 50, 5000, 500


@dataclass(frozen=True)
class Draws:
    """What a bootstrap over the images of val and of the pool gives.

    Args:
        priors: The prior of the pool in each draw, float64 (K, C).
        images: Indices of the images of the pool that were drawn from, int64 (n,): all, or of a large pool a part.
        pool_counts: How often each of these is in each draw, float64 (K, n).
        pool_scale: The factor by which deviations of a draw of the pool are smaller with all its images.
        val_counts: How often each image of val is in each draw, float64 (K, M).
    """

    priors: Tensor
    images: Tensor
    pool_counts: Tensor
    pool_scale: float
    val_counts: Tensor


def draw_priors(
    calibration: Calibration,
    val: tuple[Tensor, Tensor],
    pool_logits: Tensor,
    ratios: Tensor,
    priors: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> Draws:
    """Draw images of val and of the pool with replacement, and estimate the prior of the pool again in each draw.

    For the draws of the pool, EM is run from the prior of val, as for the estimate itself. For those of val, the
    estimate is moved to first order: the parameters of the calibration by a Newton step (their influence function), and
    the prior by the implicit function theorem at the maximum of the likelihood. Both deviations are added, and what is
    below 0 is set to 0.

    Args:
        calibration: The calibration of the network.
        val: Logits (M, C) and classes (M,) of val.
        pool_logits: Logits (N, C) of the pool.
        ratios: The posteriors of the pool over the prior of val, float64 (N, C).
        priors: The prior of val, and the estimate for the pool, both (C,).
        generator: The source of the draws, on the CPU.
    """
    train, pool = priors
    images, scale = torch.arange(len(ratios)), 1.0
    if len(images) > MOST_IMAGES:
        images = torch.randperm(len(ratios), generator=generator)[:MOST_IMAGES]
        scale = math.sqrt(MOST_IMAGES / len(ratios))
    pool_counts, val_counts = (counts_of_draws(len(each), generator) for each in (images, val[1]))
    part = ratios[images]
    centre = pool if scale == 1 else _em_of_draws(part, torch.ones(1, len(images)).double(), train)[0]
    found = pool + scale * (_em_of_draws(part, pool_counts, train) - centre)
    moved = moves_of_calibration(calibration, *val, val_counts, train)
    found = (found + moves_of_prior(ratios, pool_logits, pool, *moved)).clamp(min=0)
    return Draws(found / found.sum(1, keepdim=True), images, pool_counts, scale, val_counts)


def counts_of_draws(count: int, generator: torch.Generator) -> Tensor:
    """Return how often each of `count` images is in each draw with replacement, float64 (DRAWS, count)."""
    chosen = (torch.randint(count, (count,), generator=generator) for _ in range(DRAWS))
    return torch.stack([each.bincount(minlength=count) for each in chosen]).double()


def expectation_maximisation(
    ratios: Tensor, weights: Tensor, start: Tensor, tolerance: float, iterations: int
) -> Tensor:
    """Run EM from priors (C, K) for K weightings (N, K) of the same images, of which `ratios` (N, C) are f / p."""
    found = start
    for _ in range(iterations):
        before = found
        found = before * (ratios.T @ (weights / (ratios @ before).clamp(min=1e-300)))
        if (found - before).abs().max() < tolerance:
            break
    return found


def moves_of_calibration(
    calibration: Calibration, logits: Tensor, labels: Tensor, counts: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how much draws of val move the scale (K,) and biases less log p (K, C) of the calibration.

    A draw with weights w moves the parameters by -H^-1 sum_i (w_i - 1/M) g_i, with g_i the gradient of the cross
    entropy of image i and H its mean Hessian. Biases and log p are taken together because both follow how often a class
    is in val, of which the ratios p(class | image) / p are free.
    """
    values, classes = logits.detach().double().cpu(), len(prior)
    posteriors = calibration.posteriors(values)
    targets = F.one_hot(labels.cpu(), classes).double()
    errors, mean = posteriors - targets, (posteriors * values).sum(1, keepdim=True)
    gradients = torch.cat([(errors * values).sum(1, keepdim=True), errors], 1)
    hessian = torch.ones(classes + 1, classes + 1, dtype=torch.float64)  # all biases may grow alike: kept in place
    hessian[1:, 1:] += posteriors.mean(0).diag() - posteriors.T @ posteriors / len(values)
    hessian[0, 1:] = hessian[1:, 0] = (posteriors * (values - mean)).mean(0)
    hessian[0, 0] = ((posteriors * values.square()).sum(1) - mean[:, 0].square()).mean()
    shifts = (counts - 1) / len(values)
    moved = -(shifts @ gradients) @ torch.linalg.pinv(hessian, hermitian=True)
    return moved[:, 0], moved[:, 1:] - (shifts @ targets) / prior


def moves_of_prior(ratios: Tensor, logits: Tensor, pool: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    """Return by how much moves of a calibration, (K,) and (K, C), move the prior of a pool, (K, C).

    At the maximum the mean over images of r_c / (r . q) is 1 for each class with q_c above 0, of which the ratios
    r_c are multiplied by exp(scale z_c + bias_c). Classes without a share keep none.
    """
    over = ratios / (ratios @ pool).clamp(min=1e-300).unsqueeze(1)
    products = over.T @ over / len(over)
    values = logits.detach().double().cpu()
    of_scale = (over * (values - (over * pool * values).sum(1, keepdim=True))).mean(0)
    of_biases = over.mean(0).diag() - products * pool
    there = pool > 10 * TOLERANCE
    inverse = torch.linalg.pinv(products[there][:, there], hermitian=True)
    moved = torch.zeros_like(biases)
    moved[:, there] = (scales.unsqueeze(1) * of_scale[there] + biases @ of_biases[there].T) @ inverse
    return moved


def _em_of_draws(ratios: Tensor, counts: Tensor, start: Tensor) -> Tensor:
    """Return the prior (K, C) in each draw of images, in blocks of bounded memory."""
    found = []
    for each in counts.split(BLOCK):
        first = start.double().unsqueeze(1).expand(-1, len(each))
        found.append(expectation_maximisation(ratios, each.T / counts.shape[1], first, TOLERANCE, ITERATIONS_OF_DRAW).T)
    return torch.cat(found)
