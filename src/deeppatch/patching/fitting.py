"""Fit each kind of router to the calibration images, with a threshold that keeps its bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from deeppatch.errors import DataProblem, UserError, WrongWeights
from deeppatch.metrics import Bound, joint_threshold, upper_bound
from deeppatch.patching.router import Router

FOLDS = 5
LITTLE = 0.3  # weight of a sample on which both networks are right, or both wrong; one that tells them apart has 1
PENALTY = 0.03  # inverse of the L2 penalty of the regressions that read many features


@dataclass(frozen=True)
class CalibrationData:
    """The data that a router is fitted to: one row for each calibration image, clean and at its levels.

    Args:
        features: The features (rows, features), or with several networks a tuple of such arrays, one for each.
        image: The index of the image (rows,).
        degraded: Whether the image is degraded (rows,).
        lost: For each clean row, in order: whether the original network is correct and the patched one wrong.
        right: Which networks are correct (rows, networks), bool, the original one first; None where it is not needed.
            For a router that averages, the others are those whose answer is averaged with that of the original.
        mixed: The rows of a stream in which each image is degraded with probability 1/2; None where it is not needed.
    """

    features: np.ndarray | tuple[np.ndarray, ...]
    image: np.ndarray
    degraded: np.ndarray
    lost: np.ndarray
    right: np.ndarray | None = None
    mixed: np.ndarray | None = None

    @property
    def by_network(self) -> tuple[np.ndarray, ...]:
        """The features (rows, features) of each network beside the original one."""
        return self.features if isinstance(self.features, tuple) else (self.features,)


def fit_flips(
    data: CalibrationData, max_clean_drop: float, max_flips: float | None = None
) -> tuple[Router, dict[str, Any]]:
    """Fit the published router, whose boundary is midway between the mean d of clean and of degraded images.

    The sign of the weight says on which side of the boundary the mean of degraded images is (Wei et al., TOSEM 2023).
    It keeps no bound.
    """
    _check(data, bounded=max_flips is not None, kind="flips")
    d = data.by_network[0][:, 0]
    clean, degraded = d[~data.degraded].mean(), d[data.degraded].mean()
    sign = 1.0 if degraded >= clean else -1.0
    boundary = (clean + degraded) / 2
    facts = {"mean_d_clean": clean, "mean_d_degraded": degraded, "boundary": boundary, "degraded_side": int(sign)}
    return Router("flips", torch.tensor([sign]), 0.0, sign * boundary), facts


def fit_probe(
    data: CalibrationData, max_clean_drop: float, max_flips: float | None = None
) -> tuple[Router, dict[str, Any]]:
    """Fit a logistic regression of clean against degraded, with a threshold that bounds the loss of clean accuracy.

    The threshold is chosen on out-of-fold scores (all versions of an image are in the same fold), so that it is not
    biased by the fit. `max_clean_drop` is a share in [0, 1] of the clean images.
    """
    _check(data, bounded=False, kind="probe")
    features = data.by_network[0]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = GroupKFold(min(FOLDS, len(np.unique(data.image))))
    held_out = cross_val_predict(
        model, features, data.degraded, groups=data.image, cv=folds, method="decision_function"
    )
    broken = None if data.right is None else data.right[:, 0] & ~data.right[:, 1]
    threshold, facts = bounded_threshold(data, held_out, broken, max_clean_drop, max_flips)
    model.fit(features, data.degraded)
    weight, bias = _linear(model)
    return Router("probe", torch.from_numpy(weight), bias, threshold), facts


def fit_benefit(
    data: CalibrationData, max_clean_drop: float, max_flips: float | None = None, *, kind: str = "benefit"
) -> tuple[Router, dict[str, Any]]:
    """Fit a logistic regression of which network is right, for each network beside the original one.

    A degraded sample is the other network's unless only the original one is right; a clean sample is the original's,
    because no bound counts what is gained on clean images. Samples that tell the networks apart, being classified
    correctly by one of them only, weigh more than those on which both are right or both wrong. A sample goes to the
    network with the highest score. There is one threshold for all, so the bounds need no further correction.
    """
    _check(data, bounded=True, kind=kind)
    assert data.right is not None
    scores, weights, biases = [], [], []
    for number, features in enumerate(data.by_network, 1):
        original, other = data.right[:, 0], data.right[:, number]
        wanted = data.degraded & ~(original & ~other)
        importance = balanced(wanted, np.where(original != other, 1.0, LITTLE))
        scores.append(_held_out(features, wanted, importance, data.image))
        weight, bias = _linear(_regression(features, wanted, importance))
        weights.append(weight)
        biases.append(bias)
    best = np.stack(scores).argmax(0)
    chosen = data.right[np.arange(len(best)), best + 1]
    broken = data.right[:, 0] & ~chosen
    threshold, facts = bounded_threshold(data, np.stack(scores).max(0), broken, max_clean_drop, max_flips)
    if len(weights) == 1:
        return Router(kind, torch.from_numpy(weights[0]), biases[0], threshold), facts
    sizes = torch.tensor([len(weight) for weight in weights])
    joined = torch.from_numpy(np.concatenate(weights))
    return Router(kind, joined, torch.tensor(biases, dtype=torch.float64), threshold, sizes=sizes), facts


def balanced(wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights (rows,) such that both classes weigh the same in total, and a row 1 on average."""
    share = np.where(wanted, weights[wanted].sum(), weights[~wanted].sum())
    found: np.ndarray = weights / share * len(weights) / 2
    return found


def bounded_threshold(
    data: CalibrationData,
    scores: np.ndarray,
    broken: np.ndarray | None,
    max_clean_drop: float,
    max_flips: float | None,
) -> tuple[float, dict[str, Any]]:
    """Return the lowest threshold that keeps the bounds, and what the calibration images show of them.

    Args:
        data: The calibration images.
        scores: Scores of all rows, by a fit that has not read them.
        broken: Which rows are right by the original network only, bool (rows,); without it `lost` counts.
        max_clean_drop: The largest share of clean images that may be lost, in [0, 1].
        max_flips: The largest share of newly wrong images on the mixed stream, in [0, 1], if it is bounded.
    """
    clean = scores[~data.degraded]
    bounds = [Bound(clean, data.lost if broken is None else broken[~data.degraded], max_clean_drop)]
    if max_flips is not None:
        assert broken is not None
        assert data.mixed is not None
        bounds.append(Bound(scores[data.mixed], broken[data.mixed], max_flips))
    threshold = joint_threshold(*bounds)
    losses = bounds[0].broken_above(threshold)
    bound = upper_bound(losses, len(clean))
    facts: dict[str, Any] = {
        "threshold": threshold if np.isfinite(threshold) else None,  # all samples switch
        "clean_images": len(clean),
        "clean_losses": losses,
        "clean_drop_bound": bound,
        "max_clean_drop": max_clean_drop,
        "bound_attained": bound <= max_clean_drop,
        "smallest_bound": upper_bound(0, len(clean)),
    }
    if max_flips is not None:
        flipped, images = bounds[1].broken_above(threshold), len(bounds[1].scores)
        shown = upper_bound(flipped, images)
        facts |= {
            "mixed_images": images,
            "flips": flipped,
            "flips_bound": shown,
            "max_flips": max_flips,
            "flips_bound_attained": shown <= max_flips,
        }
    return threshold, facts


def _held_out(features: np.ndarray, wanted: np.ndarray, importance: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return scores by regressions that were fitted to other images."""
    scores = np.empty(len(wanted))
    for kept, left in GroupKFold(min(FOLDS, len(np.unique(image)))).split(features, wanted, image):
        scores[left] = _regression(features[kept], wanted[kept], importance[kept]).decision_function(features[left])
    return scores


def _regression(features: np.ndarray, wanted: np.ndarray, importance: np.ndarray) -> Pipeline:
    if len(np.unique(wanted)) < 2:
        raise DataProblem("these images do not show when which network is right; calibrate on more of them")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000))
    return model.fit(features, wanted, logisticregression__sample_weight=importance)


def _linear(model: Pipeline) -> tuple[np.ndarray, float]:
    """Return weights and bias of a regression of standardised features, for the features as they are."""
    scaler, regression = model[0], model[1]
    weight: np.ndarray = regression.coef_[0] / scaler.scale_
    return weight, float(regression.intercept_[0] - weight @ scaler.mean_)


def _check(data: CalibrationData, *, bounded: bool, kind: str) -> None:
    """Raise where these images, or these networks, cannot calibrate this router."""
    if kind in ("probe", "flips") and len(data.by_network) > 1:
        raise UserError(f"the router {kind} decides between two networks; choose benefit or benefit-both for several")
    if kind == "flips":
        if bounded:
            raise UserError("the router flips has the published boundary, which no bound moves; choose another router")
        return
    if len(np.unique(data.image)) < 2:
        raise DataProblem("val holds a single image, too few for calibration; use more images or a larger limit")
    if not all(np.isfinite(features).all() for features in data.by_network):
        raise WrongWeights("the network's first maps hold values that are not finite; check the weights")


Fit = Callable[..., tuple[Router, dict[str, Any]]]
ROUTERS: dict[str, Fit] = {
    "probe": fit_probe,
    "flips": fit_flips,
    "benefit": fit_benefit,
    "benefit-both": partial(fit_benefit, kind="benefit-both"),
    "average": partial(fit_benefit, kind="average"),
}
