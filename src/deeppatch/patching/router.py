"""Decide per sample, from the two versions of the first replaced maps, whether it is degraded."""

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
    """The replaced channels before their ReLU, in both versions (N, K, H, W), and the pixels (N, 3, H, W)."""

    pixels: Tensor
    original: Tensor
    replaced: Tensor


def flipped_share(maps: Maps) -> Tensor:
    """Return d (N, 1): the fraction of entries whose ReLU is active in exactly one version (TOSEM 2023)."""
    return ((maps.original > 0) != (maps.replaced > 0)).float().mean((1, 2, 3)).unsqueeze(1)


def pooled_statistics(maps: Maps) -> Tensor:
    """Return (N, 6 K + 3): of both versions mean ReLU, standard deviation and mean magnitude; sharpness of the pixels.

    Sharpness is the mean absolute Laplacian, that over the standard deviation, and the standard deviation.
    """
    columns = []
    for version in (maps.original.float(), maps.replaced.float()):
        size = torch.linalg.vector_norm(version, 1, (2, 3)) / version.shape[2:].numel()
        columns += [(version.mean((2, 3)) + size) / 2, _deviation(version, (2, 3)), size]  # relu is (x + |x|) / 2
    pixels = maps.pixels
    laplacian = pixels[:, :, :-2, 1:-1] + pixels[:, :, 2:, 1:-1]
    laplacian += pixels[:, :, 1:-1, :-2]
    laplacian += pixels[:, :, 1:-1, 2:]
    sharpness = laplacian.sub_(pixels[:, :, 1:-1, 1:-1], alpha=4).abs_().mean((1, 2, 3))
    spread = _deviation(pixels, (1, 2, 3))
    return torch.cat([*columns, torch.stack([sharpness, sharpness / (spread + 1e-6), spread], 1)], 1)


def _deviation(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the standard deviation, as Tensor.std does, whose kernel takes many times as long on a CPU."""
    count = math.prod(values.shape[axis] for axis in axes)
    centred = values - values.mean(axes, keepdim=True)
    return torch.linalg.vector_norm(centred, 2, axes) / (count - 1) ** 0.5


FEATURES: dict[str, Callable[[Maps], Tensor]] = {"probe": pooled_statistics, "flips": flipped_share}


class Router(nn.Module):
    """A linear score of a sample's features; above `threshold` the sample takes the patched path."""

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
        """Read what `to_bytes` made; StaleArtifact when the file is damaged or no router."""
        state, meta = tensors_from_bytes(content, origin)
        if meta.get("router") not in FEATURES or state.keys() != {"weight", "bias", "threshold"}:
            raise StaleArtifact(f"{origin} is no router; give a router.safetensors that evaluate left")
        return Router(meta["router"], state["weight"], state["bias"].item(), state["threshold"].item())


@dataclass(frozen=True)
class Evidence:
    """What val tells: features (rows) with their image's index, whether degraded, and clean losses.

    `lost` has one entry for each clean row, in their order: correct on the original path, wrong on the patched one.
    """

    features: np.ndarray
    image: np.ndarray
    degraded: np.ndarray
    lost: np.ndarray


def fit_flips(evidence: Evidence, max_clean_drop: float) -> tuple[Router, dict[str, Any]]:
    """Return the published router: the boundary lies midway between the mean d of clean and of degraded val images.

    The side on which the degraded mean lies is recorded as the sign of the weight.
    """
    d = evidence.features[:, 0]
    clean, degraded = d[~evidence.degraded].mean(), d[evidence.degraded].mean()
    sign = 1.0 if degraded >= clean else -1.0
    boundary = (clean + degraded) / 2
    facts = {"mean_d_clean": clean, "mean_d_degraded": degraded, "boundary": boundary, "degraded_side": int(sign)}
    return Router("flips", torch.tensor([sign]), 0.0, sign * boundary), facts


def fit_probe(evidence: Evidence, max_clean_drop: float) -> tuple[Router, dict[str, Any]]:
    """Return a logistic regression of clean against degraded, thresholded for a bound on the clean loss.

    The threshold is set on out-of-fold scores (all versions of an image in one fold), so that val's own fit does not
    flatter it. `max_clean_drop` is a share in [0, 1] of the clean images.
    """
    images = len(np.unique(evidence.image))
    if images < 2:
        raise DataProblem("val holds a single image, which calibrates nothing; use more images or a larger --limit")
    if not np.isfinite(evidence.features).all():
        raise WrongWeights("the network's first maps hold values that are not finite; check the weights")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = GroupKFold(min(FOLDS, images))
    held_out = cross_val_predict(
        model, evidence.features, evidence.degraded, groups=evidence.image, cv=folds, method="decision_function"
    )
    threshold, losses, bound = loosest_threshold(held_out[~evidence.degraded], evidence.lost, max_clean_drop)
    model.fit(evidence.features, evidence.degraded)
    scaler, regression = model[0], model[1]
    weight = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weight @ scaler.mean_)
    facts = {
        "threshold": threshold,
        "clean_images": len(evidence.lost),
        "clean_losses": losses,
        "clean_drop_bound": bound,
        "max_clean_drop": max_clean_drop,
        "bound_attained": bound <= max_clean_drop,
        "smallest_bound": upper_bound(0, len(evidence.lost)),
    }
    return Router("probe", torch.from_numpy(weight), bias, threshold), facts


ROUTERS: dict[str, Callable[[Evidence, float], tuple[Router, dict[str, Any]]]] = {
    "probe": fit_probe,
    "flips": fit_flips,
}


def loosest_threshold(scores: np.ndarray, lost: np.ndarray, max_drop: float) -> tuple[float, int, float]:
    """Return the lowest threshold whose bound on the clean loss is at most `max_drop`, its losses and its bound.

    `scores` (N,) belong to clean images, `lost` (N,) says which of them the patched path gets wrong although the
    original gets them correct. Lowering the threshold only adds losses, so thresholds are tested from the strictest
    on, until the first that fails. Where the images are too few to show `max_drop` even without a loss, the lowest
    threshold without a loss is taken, and its bound says what was shown. Gains on clean images are not counted, and
    a sample that looks more clean than degraded (score below 0) never switches.
    """
    allowed = 0
    while allowed < len(scores) and upper_bound(allowed + 1, len(scores)) <= max_drop:
        allowed += 1
    losing = np.sort(scores[lost])[::-1]
    losses = min(allowed, len(losing))
    threshold = max(0.0, float(losing[losses])) if losses < len(losing) else 0.0
    losses = int((losing > threshold).sum())
    return threshold, losses, upper_bound(losses, len(scores))
