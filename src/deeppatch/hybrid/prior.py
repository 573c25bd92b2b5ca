"""Estimate how often each class occurs in a pool without labels, and whether only these shares have shifted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from deeppatch.hybrid.prior_check import LEVEL, compare_distributions, contradiction_of_predictions
from deeppatch.hybrid.prior_draws import TOLERANCE, draw_priors, expectation_maximisation
from deeppatch.metrics.logit_scaling import bias_corrected_temperature

MOST_ITERATIONS = 10_000
CORRECTED, NO_SHIFT, REFUSED = "corrected", "no shift", "refused"


@dataclass(frozen=True)
class PriorEstimate:
    """The class prior of a pool, and what is to be done about it.

    Args:
        train: The class prior p of the calibrated network on val, float64 (C,), which sums to 1.
        pool: The class prior q of the pool, as EM finds it, float64 (C,).
        low: The lower bound of the 95 % bootstrap interval of q, (C,), over images of val and of the pool. It covers
            which images were drawn, if only the shares of the classes differ, not that they differ in another way.
        high: The upper bound, (C,).
        confusion: The prior of the pool by the confusion matrix, to compare with, (C,).
        decision: CORRECTED, NO_SHIFT or REFUSED.
        reason: The same in words.
        correction: What is to be added to the logits, float64 (C,); 0 unless it is CORRECTED.
    """

    train: Tensor
    pool: Tensor
    low: Tensor
    high: Tensor
    confusion: Tensor
    decision: str
    reason: str
    correction: Tensor

    @property
    def target(self) -> Tensor:
        """The prior that predictions are to have, float64 (C,): q where it is corrected for, else p."""
        return self.pool if self.decision == CORRECTED else self.train


def pool_prior(posteriors: Tensor, prior: Tensor) -> Tensor:
    """Estimate the class prior of images from the posteriors of a network that was calibrated to another prior.

    Maximum likelihood by EM: r_i(c) is proportional to f_i(c) q_c / p_c, and the next q_c is the mean of r_i(c), from
    q = p until no share changes by 1e-6 (Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to
    new a priori probabilities", Neural Computation 14, 2002, equation 2.9).

    Args:
        posteriors: The posteriors f of the images, (N, C).
        prior: The prior p for which they are calibrated, (C,), above 0.

    >>> posteriors = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    >>> pool_prior(posteriors, torch.tensor([0.5, 0.5])).round(decimals=4).tolist()
    [0.8125, 0.1875]
    """
    ratios = posteriors.double() / prior.double()
    weights = torch.full((len(ratios), 1), 1 / len(ratios), dtype=torch.float64, device=ratios.device)
    return expectation_maximisation(ratios, weights, prior.double().unsqueeze(1), TOLERANCE, MOST_ITERATIONS)[:, 0]


def prior_by_confusion(confusion: Tensor, predicted: Tensor) -> Tensor:
    """Estimate the class prior of a pool from how often each class is predicted.

    w = pinv(C) mu, clipped at 0, where C_ij is the share of held-out images that are predicted as i and are of class j,
    and mu_i the share of the pool that is predicted as i (Lipton, Wang and Smola, "Detecting and correcting for label
    shift with black box predictors", ICML 2018, section 4). The prior is w_c p_c, scaled to sum to 1.

    Args:
        confusion: The matrix C, (..., C, C), which sums to 1.
        predicted: The shares mu, (..., C).

    >>> confusion = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
    >>> prior_by_confusion(confusion, torch.tensor([0.65, 0.35])).round(decimals=4).tolist()
    [0.75, 0.25]
    """
    weights = (torch.linalg.pinv(confusion.double()) @ predicted.double().unsqueeze(-1))[..., 0].clamp(min=0)
    shares = weights * confusion.double().sum(-2)
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-300)


def estimate_prior(
    val_logits: Tensor,
    val_labels: Tensor,
    pool_logits: Tensor,
    generator: torch.Generator,
    *,
    known: Tensor | None = None,
    trust: bool = False,
) -> PriorEstimate:
    """Estimate the class prior of a pool, and decide whether the network is to be corrected for it.

    The network is calibrated on val. EM estimates the prior of the pool, with an interval by bootstrap over the images
    of val and of the pool. If only classes differ, val says how the network's output is distributed in the pool at that
    prior: how often each class is predicted (by the confusion matrix), how confident predictions are, and how large
    logits are (`compare_distributions`). Where one of these differs by more than the bootstrap explains (5 % over all,
    Bonferroni), the shift is not one of classes alone, and the correction is refused. (To compare with the inverted
    matrix instead would say nothing of classes that are hardly ever predicted, where it is singular.) Where no
    difference of the classes of val and pool can be shown, nothing is corrected: a likelihood ratio test of q = p at
    5 %, for as many images as both samples are worth, N M / (N + M).

    Args:
        val_logits: Logits (M, C) of val, whose classes are distributed as those of the training images.
        val_labels: Their classes, int64 (M,).
        pool_logits: Logits (N, C) of the pool.
        generator: The source of the draws, on the CPU.
        known: The prior of the pool, (C,), where it is known; it is then corrected for in any case.
        trust: Whether the correction is made even if the shift is not one of classes alone.

    >>> generator = torch.Generator().manual_seed(1)
    >>> labels = torch.arange(400) % 2
    >>> logits = 4 * torch.nn.functional.one_hot(labels, 2) + torch.randn(400, 2, generator=generator)
    >>> found = estimate_prior(logits, labels, logits[labels == 0].repeat(3, 1), generator)
    >>> found.decision, found.pool.round(decimals=1).tolist()
    ('corrected', [1.0, 0.0])
    """
    calibration = bias_corrected_temperature(val_logits, val_labels)
    train = calibration.posteriors(val_logits).mean(0).cpu()
    posteriors = calibration.posteriors(pool_logits).cpu()
    pool = pool_prior(posteriors, train)
    ratios, val = posteriors / train, (val_logits, val_labels)
    draws = draw_priors(calibration, val, pool_logits, ratios, (train, pool), generator)
    confusion = _confusion(val_logits.argmax(1).cpu(), val_labels.cpu(), len(pool))
    predicted = pool_logits.argmax(1).cpu().bincount(minlength=len(pool)).double()
    by_confusion = prior_by_confusion(confusion / confusion.sum(), predicted / predicted.sum())
    decision, reason = _decide(ratios, train, pool, len(val_labels))
    compared = compare_distributions(calibration, val, pool_logits, pool, draws, generator)
    contradictions = [
        contradiction_of_predictions(confusion, predicted, pool, draws.priors.std(0), generator),
        *(each.contradiction for each in sorted(compared, key=lambda each: -each.distance)),
    ]
    if any(contradictions):
        decision, reason = REFUSED, next(filter(None, contradictions))
    if decision == REFUSED and trust:
        decision, reason = CORRECTED, f"{reason}; corrected because this was asked for"
    if known is not None:
        pool, decision, reason = known.double().cpu(), CORRECTED, "the shares of the pool's classes were given"
    least = 0.5 / len(pool_logits)
    change = calibration.biases + pool.clamp(min=least).log() - train.log()
    correction = calibration.temperature * change if decision == CORRECTED else torch.zeros_like(pool)
    low, high = interval_of(draws.priors, pool)
    return PriorEstimate(train, pool, low, high, by_confusion, decision, reason, correction)


def interval_of(drawn: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 95 % percentile interval (C,) and (C,) of draws of a prior, widened to hold the estimate.

    A lower bound below the tolerance of EM is 0.

    Args:
        drawn: The prior in each draw, (K, C).
        pool: The estimate, (C,).
    """
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    low = torch.minimum(low, pool)
    return torch.where(low < TOLERANCE, 0, low), torch.maximum(high, pool)


def _decide(ratios: Tensor, train: Tensor, pool: Tensor, images: int) -> tuple[str, str]:
    """Test whether pool and val differ; `ratios` (N, C) are posteriors over prior p, `images` the size of val."""
    gained = ((ratios @ pool).log() - (ratios @ train).log()).mean()
    statistic = 2 * float(gained) * len(ratios) * images / (len(ratios) + images)
    if chi2.sf(statistic, len(pool) - 1) > LEVEL:
        found = f"{images} images of val and {len(ratios)} of the pool"
        return NO_SHIFT, f"no shift of the classes could be shown with {found}"
    return CORRECTED, "the classes of val and of the pool differ by more than sampling noise"


def _confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the number of images by predicted and true class, float64 (C, C)."""
    return (predictions * classes + labels).bincount(minlength=classes**2).view(classes, classes).double()
