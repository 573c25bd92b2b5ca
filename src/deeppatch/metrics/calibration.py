"""Whether a network's confidence can be believed: ECE with two binnings, NLL, Brier score and temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from deeppatch.errors import UserError
from deeppatch.metrics.changes import Array

BINS = 15
BINNINGS = ("width", "mass")
TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Answers:
    """What a network answered on N images, with its probabilities p from a softmax in float64.

    Args:
        prediction: The class with the largest logit, int64 (N,); the first of several.
        confidence: max_c p_c, float64 (N,).
        log_likelihood: log p_y of the label y, float64 (N,).
        brier: sum_c (p_c - [y = c])^2, float64 (N,), from 0 to 2.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    log_likelihood: np.ndarray
    brier: np.ndarray

    def correct(self, labels: Array) -> np.ndarray:
        """Return which predictions equal the labels, bool (N,)."""
        return self.prediction == np.asarray(labels)


def answers(logits: Array, labels: Array) -> Answers:
    """Return prediction, confidence, log likelihood and Brier score of each image.

    Args:
        logits: The logits (N, C) of any float type; -inf is a probability of 0.
        labels: The labels (N,).

    Raises:
        UserError: When logits are not a number or infinite.

    >>> found = answers(np.array([[2.0, 2.0], [0.0, -np.inf]]), np.array([0, 1]))
    >>> found.confidence.tolist(), found.brier.tolist(), found.log_likelihood.round(3).tolist()
    ([0.5, 1.0], [0.5, 2.0], [-0.693, -inf])
    """
    values, truth = _checked(logits, labels)
    index = np.arange(len(values))
    values = values - values.max(1, keepdims=True)
    p = np.exp(values)
    total = p.sum(1, keepdims=True)
    p, log_p = p / total, values - np.log(total)
    of_label = p[index, truth]
    others = (p**2).sum(1) - of_label**2
    return Answers(values.argmax(1), p.max(1), log_p[index, truth], np.maximum(others, 0) + (1 - of_label) ** 2)


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error and the largest gap |accuracy - mean confidence| of a bin, as shares."""

    ece: float
    gap: float


def bin_of(confidence: Array, binning: str = "width", bins: int = BINS) -> np.ndarray:
    """Return the number, from 0, of the bin that each confidence (N,) falls in.

    `width`: bin m holds ((m - 1) / bins, m / bins], m from 1. `mass`: images sorted by (confidence, index) are cut into
    runs whose sizes differ by at most 1, the longer ones first.

    >>> bin_of(np.array([0.2, 0.21, 1.0]), bins=5).tolist(), bin_of(np.array([0.9, 0.1, 0.9]), "mass", 2).tolist()
    ([0, 1, 4], [0, 0, 1])
    """
    values = np.asarray(confidence, dtype=np.float64)
    if binning == "width":
        return np.minimum(np.searchsorted(np.arange(1, bins + 1) / bins, values), bins - 1)
    if binning != "mass":
        raise UserError(f"binning={binning!r}: choose one of {', '.join(BINNINGS)}")
    order = np.argsort(values, kind="stable")
    sizes = [len(run) for run in np.array_split(order, bins)]
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.repeat(np.arange(bins), sizes)
    return found


def calibration_error(confidence: Array, correct: Array, binning: str = "width", bins: int = BINS) -> Calibration:
    """Return the expected calibration error and the largest gap of a bin.

    ECE = sum_m n_m / n |acc_m - mean conf_m| over the bins of `bin_of` (Guo et al., On calibration of modern neural
    networks, ICML 2017, eq. 3); empty bins count nothing.

    Args:
        confidence: The largest probability of each image, in [0, 1], (N,), N above 0.
        correct: Which images are classified correctly, bool (N,).
        binning: `width` for bins of equal width, `mass` for bins with equally many images.
        bins: The number of bins.

    Raises:
        UserError: When the binning is unknown, or there are no images.

    >>> found = calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]))
    >>> round(found.ece, 3), round(found.gap, 3)
    (0.1, 0.1)
    """
    values = np.asarray(confidence, dtype=np.float64)
    if not len(values):
        raise UserError("calibration needs images; there are none")
    member = bin_of(values, binning, bins)
    images = np.bincount(member, minlength=bins)
    sums = np.abs(np.bincount(member, np.asarray(correct, dtype=float) - values, bins))
    gaps = np.divide(sums, images, out=np.zeros(bins), where=images > 0)
    return Calibration(float(sums.sum() / len(values)), float(gaps.max()))


def negative_log_likelihood(log_likelihood: Array) -> float:
    """Return the mean of -log p_y in nats, from log p_y (N,); inf where a label has a probability of 0."""
    return float(-np.mean(log_likelihood))


def brier_score(brier: Array) -> float:
    """Return the mean over images of sum_c (p_c - [y = c])^2, from 0 to 2; some authors halve it."""
    return float(np.mean(brier))


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature T for which softmax(logits / T) has the smallest NLL (Guo et al., ICML 2017, section 4.2).

    The NLL is convex in 1 / T; its derivative mean_i (E_p[z] - z_y) is set to zero. Where all images are classified
    correctly there is no minimum, and the bound 0.01 is returned; 100 where logits say nothing of the labels.

    Args:
        logits: The logits (N, C) of clean validation images, finite.
        labels: Their labels (N,).

    Raises:
        UserError: When logits are not finite.

    >>> logits = np.array([[4.0, 0.0]] * 4)
    >>> round(float(fit_temperature(logits, np.array([0, 0, 0, 1]))), 3)  # softmax(4 / T) = 3 / 4
    3.641
    """
    values, truth = _checked(logits, labels)
    if not np.isfinite(values).all():
        raise UserError("a temperature needs finite logits; check the weights of the network")
    of_label = values[np.arange(len(values)), truth]

    def slope(inverse: float) -> float:
        log_p = inverse * values - logsumexp(inverse * values, axis=1, keepdims=True)
        return float(((np.exp(log_p) * values).sum(1) - of_label).mean())

    low, high = (1 / each for each in reversed(TEMPERATURES))
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    return float(1 / brentq(slope, low, high, xtol=1e-12))


def _checked(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise UserError(f"logits {values.shape} and labels {truth.shape}: give (N, C) and (N,)")
    if not np.isfinite(values.max(1)).all():  # a nan or inf anywhere, or -inf everywhere
        raise UserError("the network returns logits that are not finite; check its weights")
    return values, truth
