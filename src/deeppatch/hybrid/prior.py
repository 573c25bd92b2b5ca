"""Estimate how often each class occurs in a pool without labels, and whether only these shares have shifted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from deeppatch.metrics.logit_scaling import bias_corrected_temperature

TOLERANCE, MOST_ITERATIONS = 1e-6, 10_000
# of the bootstrap: draws, those that are computed at a time, and the iterations from the estimate on
DRAWS, BLOCK, ITERATIONS_OF_DRAW = 100, 50, 100
LEVEL = 0.05  # of a test over all classes
CORRECTED, NO_SHIFT, REFUSED = "corrected", "no shift", "refused"


@dataclass(frozen=True)
class PriorEstimate:
    """The class prior of a pool, and what is to be done about it.

    Args:
        train: The class prior p of the calibrated network on val, float64 (C,), which sums to 1.
        pool: The class prior q of the pool, as EM finds it, float64 (C,).
        low: The lower bound of the 95 % bootstrap interval of q over images of the pool, (C,).
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
    return _expectation_maximisation(ratios, weights, prior.double().unsqueeze(1), TOLERANCE, MOST_ITERATIONS)[:, 0]


def _expectation_maximisation(
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

    The network is calibrated on val. EM estimates the prior of the pool, with an interval by bootstrap over its images.
    If only classes differ, the confusion matrix of val says how often each class is predicted at that prior. Where that
    differs from how often it is predicted by more than both intervals (by bootstrap over val and pool, 95 % over all
    classes, Bonferroni), the shift is not one of classes alone, and the correction is refused. (To compare with the
    inverted matrix instead would say nothing of classes that are hardly ever predicted, where it is singular.) Where
    the classes of val and pool differ by no more than sampling noise, nothing is corrected: a likelihood ratio test of
    q = p at 5 %, for as many images as both samples are worth, N M / (N + M).

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
    ratios = posteriors / train
    drawn = _draws_of_pool(ratios, pool, generator)
    confusion = _confusion(val_logits.argmax(1).cpu(), val_labels.cpu(), len(pool))
    predicted = pool_logits.argmax(1).cpu().bincount(minlength=len(pool)).double()
    by_confusion = prior_by_confusion(confusion / confusion.sum(), predicted / predicted.sum())
    decision, reason = _decide(ratios, train, pool, len(val_labels))
    if contradiction := _contradiction(confusion, predicted, pool, drawn.std(0), generator):
        decision, reason = REFUSED, contradiction
    if decision == REFUSED and trust:
        decision, reason = CORRECTED, f"{reason}; corrected because this was asked for"
    if known is not None:
        pool, decision, reason = known.double().cpu(), CORRECTED, "the shares of the pool's classes were given"
    least = 0.5 / len(pool_logits)
    change = calibration.biases + pool.clamp(min=least).log() - train.log()
    correction = calibration.temperature * change if decision == CORRECTED else torch.zeros_like(pool)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    return PriorEstimate(train, pool, low, high, by_confusion, decision, reason, correction)


def _contradiction(
    confusion: Tensor, predicted: Tensor, pool: Tensor, deviation: Tensor, generator: torch.Generator
) -> str:
    """Say where predictions for the pool contradict its estimated prior, whose deviation is given (C,); else ''.

    `confusion` (C, C) are numbers of images of val by predicted and true class, `predicted` (C,) those of the pool.
    """
    classes = len(pool)
    counts = [_multinomial(each.flatten(), generator) for each in (confusion, predicted)]
    expected, observed = _predicted_at(confusion, pool), predicted / predicted.sum()
    drawn = _predicted_at(counts[0].view(-1, classes, classes), pool) - counts[1] / predicted.sum()
    bound = float(norm.ppf(1 - LEVEL / (2 * classes)))
    allowed = bound * (drawn.std(0) + _rates(confusion) @ deviation)
    allowed += (pool / (confusion.sum(0) + 1)).sum()  # one image more or less of each class in val means nothing
    apart = (expected - observed).abs() - allowed
    if not bool((apart > 0).any()):
        return ""
    index = int(apart.argmax())
    return (
        f"{100 * observed[index]:.1f} % of the pool are predicted as class {index}, while "
        f"{100 * expected[index]:.1f} % would be if only the shares of the classes differed"
    )


def _predicted_at(confusion: Tensor, prior: Tensor) -> Tensor:
    """Return how often each class would be predicted at a prior, (..., C)."""
    return _rates(confusion) @ prior


def _rates(confusion: Tensor) -> Tensor:
    """Return P(predicted | class), (..., C, C), with one image more of each class, predicted as images of val are."""
    overall = confusion.sum(-1, keepdim=True) / confusion.sum((-2, -1), keepdim=True)
    return (confusion + overall) / (confusion.sum(-2, keepdim=True) + 1)


def _decide(ratios: Tensor, train: Tensor, pool: Tensor, images: int) -> tuple[str, str]:
    """Test whether pool and val differ; `ratios` (N, C) are posteriors over prior p, `images` the size of val."""
    gained = ((ratios @ pool).log() - (ratios @ train).log()).mean()
    statistic = 2 * float(gained) * len(ratios) * images / (len(ratios) + images)
    if chi2.sf(statistic, len(pool) - 1) > LEVEL:
        return NO_SHIFT, "the classes of val and of the pool differ by no more than sampling noise"
    return CORRECTED, "the classes of val and of the pool differ by more than sampling noise"


def _draws_of_pool(ratios: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
    """Return bootstrap draws (DRAWS, C) of EM over images of the pool, in blocks of bounded memory."""
    count, found = len(ratios), []
    for block in torch.arange(DRAWS).split(BLOCK):
        chosen = torch.randint(count, (len(block), count), generator=generator)
        weights = torch.stack([each.bincount(minlength=count) for each in chosen], 1).double() / count
        first = start.unsqueeze(1).expand(-1, len(block))
        found.append(_expectation_maximisation(ratios, weights, first, 10 * TOLERANCE, ITERATIONS_OF_DRAW).T)
    return torch.cat(found)


def _confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the number of images by predicted and true class, float64 (C, C)."""
    return (predictions * classes + labels).bincount(minlength=classes**2).view(classes, classes).double()


def _multinomial(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Return DRAWS of as many images as `counts` (K,) has, in its proportions, as numbers (DRAWS, K)."""
    total = int(counts.sum())
    cells = [torch.multinomial(counts, total, replacement=True, generator=generator) for _ in range(DRAWS)]
    return torch.stack([each.bincount(minlength=len(counts)) for each in cells]).double()
