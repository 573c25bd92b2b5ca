"""Tell samples that resemble nothing seen in the calibration: Gaussians, one for each condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from deeppatch.errors import DataProblem, StaleArtifact

FOLDS = 5
SHRINKAGE = 0.1  # share of the diagonal in the covariance, whose estimate from few images is poor
KEYS = {"centres", "centre", "whitening", "threshold"}


class Density(nn.Module):
    """The distance of a sample's features from the nearest of several Gaussians that share one covariance.

    This is Mahalanobis' distance, whose square is the negative logarithm of the density but for a constant, with the
    conditions of the calibration, clean and each degradation, in the place of classes (Lee et al., A simple unified
    framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018, equation 2).

    Args:
        centres: The mean of each condition after whitening, (G, F).
        centre: The mean of all features, (F,).
        whitening: Maps centred features to coordinates in which the covariance is the identity, (F, F).
        threshold: The squared distance above which a sample resembles nothing seen.
    """

    centres: Tensor
    centre: Tensor
    whitening: Tensor
    threshold: Tensor

    def __init__(self, centres: Tensor, centre: Tensor, whitening: Tensor, threshold: float) -> None:
        super().__init__()
        for name, value in (("centres", centres), ("centre", centre), ("whitening", whitening)):
            self.register_buffer(name, value.double())
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, F) to squared distances (N,), float64."""
        white = (features.double() - self.centre) @ self.whitening
        return (white.unsqueeze(1) - self.centres).square().sum(2).amin(1)

    @staticmethod
    def of(state: dict[str, Tensor], origin: Path) -> Density:
        """Return the density with a state; StaleArtifact where it is none."""
        if state.keys() != KEYS:
            raise StaleArtifact(f"{origin} is not a router; give a router.safetensors that evaluate left")
        width = len(state["centre"].flatten())
        shapes = {"centres": (len(state["centres"].flatten()) // max(1, width), width), "centre": (width,)}
        shapes |= {"whitening": (width, width), "threshold": ()}
        if any(tuple(state[name].shape) != shape for name, shape in shapes.items()):
            raise StaleArtifact(f"{origin} is damaged: its tensors are not those of a router; run evaluate again")
        return Density(state["centres"], state["centre"], state["whitening"], state["threshold"].item())


def fit_density(features: np.ndarray, image: np.ndarray, condition: np.ndarray, rate: float) -> Density:
    """Fit the density of the calibration's features, with a threshold at a stated rate of false alarms.

    The threshold is chosen on images that the Gaussians were not fitted to: it is the lowest at which at most a share
    `rate` of the clean ones, and at most this share of the degraded ones, lie beyond it.

    Args:
        features: The features (rows, F).
        image: The index of the image of each row (rows,).
        condition: What was done to it (rows,): 0 for nothing.
        rate: The rate of false alarms, in (0, 1).

    >>> draw = np.random.default_rng(0)
    >>> features, image, condition = draw.normal(size=(200, 3)), np.arange(200) % 100, np.arange(200) // 100
    >>> density = fit_density(features, image, condition, 0.05)
    >>> bool(density(torch.full((1, 3), 9.0)) > density.threshold)
    True
    """
    if len(np.unique(image)) < 2:
        raise DataProblem("there is a single image to calibrate on; a density needs more, so use more images")
    held_out = np.empty(len(features))
    for kept, left in GroupKFold(min(FOLDS, len(np.unique(image)))).split(features, condition, image):
        fitted = _gaussians(features[kept], condition[kept])
        held_out[left] = fitted(torch.from_numpy(features[left])).numpy()
    sides = [held_out[chosen] for chosen in (condition == 0, condition > 0) if chosen.any()]
    found = _gaussians(features, condition)
    found.threshold.fill_(max(float(np.quantile(side, 1 - rate, method="higher")) for side in sides))
    return found


def _gaussians(features: np.ndarray, condition: np.ndarray) -> Density:
    spread = features.std(0)
    constant = spread <= 1e-9 * max(1.0, float(np.abs(features).max()))
    scaled = (features - features.mean(0)) / np.where(constant, 1.0, spread)
    kinds = np.unique(condition)
    means = np.stack([scaled[condition == kind].mean(0) for kind in kinds])
    within = scaled - means[np.searchsorted(kinds, condition)]
    covariance = within.T @ within / max(1, len(within) - len(kinds))
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    values, vectors = np.linalg.eigh(shrunk + 1e-6 * np.eye(len(shrunk)))
    whitening = vectors / np.sqrt(values)
    scaling = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
    return Density(
        torch.from_numpy(means @ whitening),
        torch.from_numpy(features.mean(0)),
        torch.from_numpy(scaling[:, None] * whitening),
        np.inf,
    )
