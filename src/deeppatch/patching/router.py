"""Decide for each sample whether it is degraded, from the original and the replaced feature maps of one layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import DataProblem, StaleArtifact, WrongWeights
from deeppatch.metrics import upper_bound

FOLDS = 5


@dataclass(frozen=True)
class Maps:
    """The patched channels before their ReLU, original and replaced (N, K, H, W), and the pixels (N, 3, H, W)."""

    pixels: Tensor
    original: Tensor
    replaced: Tensor


def flip_fraction(maps: Maps) -> Tensor:
    """Return d (N, 1): the fraction of entries whose ReLU is active in exactly one version (TOSEM 2023)."""
    return ((maps.original > 0) != (maps.replaced > 0)).float().mean((1, 2, 3)).unsqueeze(1)


def pooled_statistics(maps: Maps) -> Tensor:
    """Return statistics of maps and pixels, (N, 6 K + 3).

    Of each channel, original and replaced: the mean after ReLU, the standard deviation, and the mean magnitude. Of the
    pixels: the mean absolute Laplacian (sharpness), its ratio to the standard deviation, and the standard deviation.
    """
    columns = []
    for version in (maps.original.float(), maps.replaced.float()):
        size = torch.linalg.vector_norm(version, 1, (2, 3)) / version.shape[2:].numel()
        columns += [
            (version.mean((2, 3)) + size) / 2,
            _standard_deviation(version, (2, 3)),
            size,
        ]  # relu is (x + |x|) / 2
    pixels = maps.pixels
    laplacian = pixels[:, :, :-2, 1:-1] + pixels[:, :, 2:, 1:-1]
    laplacian += pixels[:, :, 1:-1, :-2]
    laplacian += pixels[:, :, 1:-1, 2:]
    sharpness = laplacian.sub_(pixels[:, :, 1:-1, 1:-1], alpha=4).abs_().mean((1, 2, 3))
    deviation = _standard_deviation(pixels, (1, 2, 3))
    return torch.cat([*columns, torch.stack([sharpness, sharpness / (deviation + 1e-6), deviation], 1)], 1)


def _standard_deviation(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the standard deviation as `Tensor.std` does, but many times as fast on a CPU; 0 for a single value."""
    count = math.prod(values.shape[axis] for axis in axes)
    centred = values - values.mean(axes, keepdim=True)
    return torch.linalg.vector_norm(centred, 2, axes) / max(1, count - 1) ** 0.5


FEATURES: dict[str, Callable[[Maps], Tensor]] = {"probe": pooled_statistics, "flips": flip_fraction}


class Router(nn.Module):
    """A linear score of a sample's features; samples with scores above `threshold` use the patched network."""

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, kind: str, weight: Tensor, bias: float, threshold: float) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))

    def forward(self, maps: Maps) -> Tensor:
        """Return the scores (N,), float64: higher means more probably degraded."""
        return FEATURES[self.kind](maps).double() @ self.weight + self.bias

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        return tensors_to_bytes(self.state_dict(), {"router": self.kind})

    @staticmethod
    def from_bytes(content: bytes, origin: Path) -> Router:
        """Return the router that `to_bytes` has serialised; StaleArtifact when the file is damaged or not a router."""
        state, meta = tensors_from_bytes(content, origin)
        if meta.get("router") not in FEATURES or state.keys() != {"weight", "bias", "threshold"}:
            raise StaleArtifact(f"{origin} is not a router; give a router.safetensors that evaluate left")
        return Router(meta["router"], state["weight"], state["bias"].item(), state["threshold"].item())


@dataclass(frozen=True)
class CalibrationData:
    """The data that a router is fitted to: one row for each validation image, clean and at each level.

    Args:
        features: The features (rows, features).
        image: The index of the image (rows,).
        degraded: Whether the image is degraded (rows,).
        lost: For each clean row, in order: whether the original network is correct and the patched one wrong.
    """

    features: np.ndarray
    image: np.ndarray
    degraded: np.ndarray
    lost: np.ndarray


def fit_flips(data: CalibrationData, max_clean_drop: float) -> tuple[Router, dict[str, Any]]:
    """Fit the published router, whose boundary is midway between the mean d of clean and of degraded val images.

    The sign of the weight says on which side of the boundary the mean of degraded images is (Wei et al., TOSEM 2023).
    """
    d = data.features[:, 0]
    clean, degraded = d[~data.degraded].mean(), d[data.degraded].mean()
    sign = 1.0 if degraded >= clean else -1.0
    boundary = (clean + degraded) / 2
    facts = {"mean_d_clean": clean, "mean_d_degraded": degraded, "boundary": boundary, "degraded_side": int(sign)}
    return Router("flips", torch.tensor([sign]), 0.0, sign * boundary), facts


def fit_probe(data: CalibrationData, max_clean_drop: float) -> tuple[Router, dict[str, Any]]:
    """Fit a logistic regression of clean against degraded, with a threshold that bounds the loss of clean accuracy.

    The threshold is chosen on out-of-fold scores (all versions of an image are in the same fold), so that it is not
    biased by the fit. `max_clean_drop` is a share in [0, 1] of the clean images.
    """
    images = len(np.unique(data.image))
    if images < 2:
        raise DataProblem("val holds a single image, too few for calibration; use more images or a larger limit")
    if not np.isfinite(data.features).all():
        raise WrongWeights("the network's first maps hold values that are not finite; check the weights")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = GroupKFold(min(FOLDS, images))
    held_out = cross_val_predict(
        model, data.features, data.degraded, groups=data.image, cv=folds, method="decision_function"
    )
    threshold, losses, bound = loosest_threshold(held_out[~data.degraded], data.lost, max_clean_drop)
    model.fit(data.features, data.degraded)
    scaler, regression = model[0], model[1]
    weight = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weight @ scaler.mean_)
    facts = {
        "threshold": threshold,
        "clean_images": len(data.lost),
        "clean_losses": losses,
        "clean_drop_bound": bound,
        "max_clean_drop": max_clean_drop,
        "bound_attained": bound <= max_clean_drop,
        "smallest_bound": upper_bound(0, len(data.lost)),
    }
    return Router("probe", torch.from_numpy(weight), bias, threshold), facts


ROUTERS: dict[str, Callable[[CalibrationData, float], tuple[Router, dict[str, Any]]]] = {
    "probe": fit_probe,
    "flips": fit_flips,
}


def loosest_threshold(scores: np.ndarray, lost: np.ndarray, max_drop: float) -> tuple[float, int, float]:
    """Return the lowest threshold whose bound on the loss of clean accuracy is at most `max_drop`.

    Lowering the threshold can only add losses, so thresholds are tested from the strictest on, until the first that
    exceeds the bound. When there are too few images to show `max_drop` even without a loss, the lowest threshold
    without a loss is used. Gains on clean images are not counted, and a sample that looks more clean than degraded
    (score below 0) never switches.

    Args:
        scores: The router's scores of clean images, (N,).
        lost: Which of these images only the original network classifies correctly, bool (N,).
        max_drop: The largest share of lost images, in [0, 1].

    Returns:
        The threshold, the number of lost images, and the upper bound on their share.
    """
    allowed = 0
    while allowed < len(scores) and upper_bound(allowed + 1, len(scores)) <= max_drop:
        allowed += 1
    losing = np.sort(scores[lost])[::-1]
    losses = min(allowed, len(losing))
    threshold = max(0.0, float(losing[losses])) if losses < len(losing) else 0.0
    losses = int((losing > threshold).sum())
    return threshold, losses, upper_bound(losses, len(scores))
