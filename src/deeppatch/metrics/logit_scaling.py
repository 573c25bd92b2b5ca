"""Calibrate scores on held-out images by the cross entropy: a temperature or a scale a class, and a bias a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

LEAST_SCALE = 1e-3  # of the logits: one over the temperature


@dataclass(frozen=True)
class Calibration:
    """A calibration of logits z: the posteriors are softmax(z / temperature + biases), with biases float64 (C,)."""

    temperature: float
    biases: Tensor

    def posteriors(self, logits: Tensor) -> Tensor:
        """Return the calibrated class probabilities, float64 (N, C), of logits (N, C)."""
        return F.softmax(logits.double() / self.temperature + self.biases.to(logits.device), 1)


def bias_corrected_temperature(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit a temperature and class biases by minimising the cross entropy on held-out images.

    This is bias-corrected temperature scaling (Alexandari, Kundaje and Shrikumar, "Maximum likelihood with
    bias-corrected calibration is hard-to-beat at label shift adaptation", ICML 2020). The problem is convex in the
    scale 1 / T and the biases, and is solved by L-BFGS in float64. One further image that has a share 1 / C of each
    class is counted in, spread over all images, so that the minimum is finite where all images are classified
    correctly, and where a class has no image (Platt, 1999, does the same for two classes).

    Args:
        logits: Logits (N, C) of images that the network was not trained on.
        labels: Their classes, int64 (N,).

    Returns:
        The calibration. The mean of its posteriors over these images is the share of each class among them, up to the
        image that is counted in.

    >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    >>> found = bias_corrected_temperature(logits, torch.tensor([0, 0, 1, 1]))
    >>> found.temperature > 1, found.posteriors(logits).mean(0).round(decimals=2).tolist()
    (True, [0.5, 0.5])
    """
    scales, biases = _fitted(logits, labels, own_scales=False)
    return Calibration(float(1 / scales[0]), biases - biases.mean())


def scales_and_biases(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a scale, above zero, and a bias for each class, so that scores of different origins can be compared.

    As `bias_corrected_temperature`, with a scale for each class in place of one for all (vector scaling: Guo et al.,
    "On calibration of modern neural networks", ICML 2017).

    Args:
        scores: Scores (N, C), each column on a scale of its own, of images that nothing was trained on.
        labels: Their classes, int64 (N,).

    Returns:
        Scales and biases, float64 (C,): softmax(scales * scores + biases) are the posteriors.

    >>> scores = torch.tensor([[9.0, 0.1], [8.0, 0.2], [7.0, 0.9], [7.5, 0.8]])  # the first class is always larger
    >>> scales, biases = scales_and_biases(scores, torch.tensor([0, 0, 1, 1]))
    >>> (scales * scores + biases).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    return _fitted(scores, labels, own_scales=True)


def _fitted(scores: Tensor, labels: Tensor, *, own_scales: bool) -> tuple[Tensor, Tensor]:
    """Return scales (C,), or (1,), and biases (C,) of least cross entropy on scores (N, C)."""
    values = scores.detach().double().cpu().numpy()
    count, classes = values.shape
    spread = 1 / (count + 1)
    targets = np.full(values.shape, spread / classes)
    targets[np.arange(count), labels.cpu().numpy()] += 1 - spread
    scales = classes if own_scales else 1

    def loss_and_gradient(at: np.ndarray) -> tuple[float, np.ndarray]:
        log_posteriors = log_softmax(at[:scales] * values + at[scales:], axis=1)
        errors = (np.exp(log_posteriors) - targets) / count
        of_scales = (errors * values).sum(0)
        of_scales = of_scales if own_scales else of_scales.sum(keepdims=True)
        return -(targets * log_posteriors).sum() / count, np.concatenate([of_scales, errors.sum(0)])

    start = np.concatenate([np.ones(scales), np.zeros(classes)])
    bounds = [*[(LEAST_SCALE, None)] * scales, *[(None, None)] * classes]
    options = {"maxiter": 1000, "gtol": 1e-9, "ftol": 1e-14}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return torch.from_numpy(found[:scales]), torch.from_numpy(found[scales:])
