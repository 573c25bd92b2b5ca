"""Errors over corruption types and severities: mCE, relative mCE, and the mean corruption error without a base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeppatch.errors import UserError

# one error for each severity of a type, or one number: its mean over the severities; shares or percent, as is the base
Errors = Mapping[str, float | Sequence[float]]

# AlexNet on ImageNet-C, mean error over the five severities (the authors' repository, an earlier README of it)
ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840,
    "jpeg_compression": 0.606500, "speckle_noise": 0.845388, "gaussian_blur": 0.787108, "spatter": 0.717512,
    "saturate": 0.658248,
}  # fmt: skip
ALEXNET_CLEAN = 0.4348
ROUNDING = 1e-9  # a mean of equal errors may differ from them by less


@dataclass(frozen=True)
class CorruptionError:
    """Errors relative to a base, in percent: 100 is the base's.

    Args:
        by_type: The ratio for each type that has one.
        undefined: The types whose denominator is not above 0; they are not in the mean, which is to be said with it.
    """

    by_type: dict[str, float]
    undefined: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over the types that have a ratio; nan where none has."""
        return float(np.mean(list(self.by_type.values()))) if self.by_type else math.nan


def mean_corruption_error(errors: Errors) -> float:
    """Return the mean over types of the mean error over severities, without a base, in the unit of the errors.

    >>> round(mean_corruption_error({"fog": [0.1, 0.3], "snow": [0.4, 0.4]}), 6)
    0.3
    """
    if not errors:
        raise UserError("a mean corruption error needs the errors of at least one corruption")
    return float(np.mean([np.mean(each) for each in errors.values()]))


def corruption_error(errors: Errors, base: Errors) -> CorruptionError:
    """Return the corruption error of each type relative to a base, and mCE as their mean.

    CE_c = sum_s E_{s,c} / sum_s E^base_{s,c}, mCE = 100 mean_c CE_c (Hendrycks and Dietterich, Benchmarking neural
    network robustness to common corruptions and perturbations, ICLR 2019). They take AlexNet as the base for ImageNet-C
    (`ALEXNET`); there is none for CIFAR, where the base is the network under repair, which is 100 by definition.

    Args:
        errors: The errors of the network.
        base: Those of the base, in the same unit, of all these types with the same severities.

    Raises:
        UserError: When the base lacks a type or has other severities.

    >>> corruption_error({"fog": [0.25, 0.5]}, {"fog": [0.5, 1.0]}).mean
    50.0
    """
    return _ratios(errors, base, 0.0, 0.0)


def relative_corruption_error(errors: Errors, clean: float, base: Errors, base_clean: float) -> CorruptionError:
    """Return how much more errors than on clean images each type costs, relative to a base.

    Relative CE_c = sum_s (E_{s,c} - E_clean) / sum_s (E^base_{s,c} - E^base_clean), relative mCE = 100 times its mean;
    undefined for a type on which the base is no worse than on clean images.

    Args:
        errors: The errors of the network.
        clean: Its error on clean images.
        base: The errors of the base, of all these types with the same severities.
        base_clean: Its error on clean images.

    Raises:
        UserError: When the base lacks a type or has other severities.

    >>> found = relative_corruption_error({"fog": [0.3], "snow": [0.3]}, 0.1, {"fog": [0.5], "snow": [0.1]}, 0.1)
    >>> round(found.mean, 6), found.undefined
    (50.0, ('snow',))
    """
    return _ratios(errors, base, clean, base_clean)


def _ratios(errors: Errors, base: Errors, clean: float, base_clean: float) -> CorruptionError:
    if missing := [name for name in errors if name not in base]:
        raise UserError(f"the base has no errors for {', '.join(missing)}; measure both on the same corruptions")
    by_type, undefined = {}, []
    for name, own in errors.items():
        if np.ndim(base[name]) and np.shape(base[name]) != np.shape(own):
            raise UserError(f"{name}: the base was measured at other severities; measure both at the same")
        denominator = float(np.mean(base[name])) - base_clean
        if denominator > ROUNDING:
            by_type[name] = 100 * (float(np.mean(own)) - clean) / denominator
        else:
            undefined.append(name)
    return CorruptionError(by_type, tuple(undefined))
