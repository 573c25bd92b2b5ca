"""Select the condition of an image, such as its level of blur, from the energy of its spatial frequencies."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from deeppatch.errors import DataProblem
from deeppatch.metrics import Bound, joint_threshold, upper_bound

RINGS = 16
FOLDS = 5
LEAST = 1e-12  # the least share of energy in a ring, so that its logarithm exists


def rings(pixels: Tensor) -> Tensor:
    """Return the logarithm of the share of each ring of spatial frequencies in an image's energy, float64 (N, 16).

    The image is the mean of its channels. Ring r has the frequencies at r / 32 cycles a pixel, to the nearest ring; the
    last has all higher ones, in the corners. The mean of the image is left out. (FROST, Camuffo et al., ICASSP 2024,
    arXiv 2403.14335, takes the first amplitudes of high frequencies instead.)

    Args:
        pixels: Pixels (N, 3, H, W) in [0, 1].

    >>> stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 3, 32, 32)  # half a cycle a pixel
    >>> rings(stripes).argmax().item() + 1
    16
    """
    grey = pixels.double().mean(1)
    height, width = grey.shape[-2:]
    energy = torch.fft.fft2(grey).abs().square().flatten(1)
    down, across = (torch.fft.fftfreq(size, dtype=torch.float64, device=grey.device) for size in (height, width))
    radius = 2 * RINGS * torch.hypot(down[:, None], across[None, :]).flatten()
    ring = radius.round().clamp(1, RINGS)
    ring[0] = 0  # the mean, which is left out
    membership = (ring[:, None] == torch.arange(1, RINGS + 1, device=grey.device)).double()
    sums = energy @ membership
    total = sums.sum(1, keepdim=True)
    share = torch.where(total > LEAST, sums / total.clamp(min=LEAST), 1 / RINGS)  # of a plain image no ring has any
    return share.clamp(min=LEAST).log()


class Selector(nn.Module):
    """A linear score of each condition; an image that is surer than `threshold` of not being clean gets the best one.

    Args:
        weight: The weights of the features, float64 (conditions, 16); row 0 is for clean images.
        bias: The constants, float64 (conditions,).
        threshold: The least logarithm of the odds against clean, float64 ().
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", bias.double())
        self.register_buffer("threshold", threshold.double())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the condition of each of pixels (N, 3, H, W) in [0, 1], int64 (N,); 0 is clean."""
        return self.select(rings(pixels))

    def select(self, features: Tensor) -> Tensor:
        """Return the same for features that `rings` has returned, (N, 16)."""
        scores = features @ self.weight.T + self.bias
        return torch.where(odds(scores) > self.threshold, scores[:, 1:].argmax(1) + 1, 0)


def odds(scores: Tensor) -> Tensor:
    """Return the logarithm of the odds against clean (N,) of scores (N, conditions), of which column 0 is clean."""
    return scores[:, 1:].logsumexp(1) - scores[:, 0]


def fit_selector(
    features: np.ndarray, condition: np.ndarray, image: np.ndarray, wrong: np.ndarray, max_clean_drop: float
) -> tuple[Selector, dict[str, float]]:
    """Fit a multinomial logistic regression, and a threshold that bounds the loss of clean accuracy.

    Conditions are balanced, and features standardised. The threshold is chosen on scores of folds that were held out;
    all versions of an image are in the same fold.

    Args:
        features: What `rings` returns of images, clean and in each condition, (rows, 16).
        condition: The condition of each row, from 0, clean.
        image: The number of the image that each row is a version of.
        wrong: For each clean row, in order, and each condition: whether the image is classified wrongly as one of that
            condition, and correctly by the base, bool (images, conditions).
        max_clean_drop: The largest share of lost clean images that 95 % confidence allows, in [0, 1].

    Returns:
        The selector, and what was found on the clean images: `threshold`, `clean_losses` and `clean_drop_bound`.

    Raises:
        DataProblem: When there is a single image.
    """
    images = len(np.unique(image))
    if images < 2:
        raise DataProblem("val holds a single image, too few to fit a selector; use more images or a larger limit")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = GroupKFold(min(FOLDS, images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that has not converged, which is no matter here
        held_out = cross_val_predict(model, features, condition, groups=image, cv=folds, method="decision_function")
        model.fit(features, condition)
    scores = torch.from_numpy(_columns(held_out))[torch.from_numpy(condition == 0)]
    best = scores[:, 1:].argmax(1).numpy() + 1
    lost = wrong[np.arange(len(wrong)), best]
    threshold, losses = loosest(odds(scores).numpy(), lost, max_clean_drop)
    scaler, regression = model[0], model[1]
    weight = _columns(regression.coef_.T).T / scaler.scale_
    bias = _columns(regression.intercept_[None])[0] - weight @ scaler.mean_
    selector = Selector(torch.from_numpy(weight), torch.from_numpy(bias), torch.tensor(threshold))
    facts = {"threshold": threshold, "clean_losses": losses, "clean_drop_bound": upper_bound(losses, len(lost))}
    return selector, facts


def _columns(values: np.ndarray) -> np.ndarray:
    """Return scores with a column for each condition; of two conditions the regression gives only the second."""
    values = values[:, None] if values.ndim == 1 else values
    return np.concatenate([np.zeros_like(values), values], 1) if values.shape[1] == 1 else values


def loosest(scores: np.ndarray, lost: np.ndarray, max_drop: float) -> tuple[float, int]:
    """Return the lowest threshold, from 0 on, that keeps the bound on lost images, and how many are lost above it.

    Scores below 0 are clean. See `metrics.joint_threshold`.
    """
    bound = Bound(scores, lost, max_drop)
    threshold = max(0.0, joint_threshold(bound))
    return threshold, bound.broken_above(threshold)
