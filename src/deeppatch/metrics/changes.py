"""What a repair changes, image by image: repair and negative flip rates, backward trust and error compatibility."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Changes:
    """How many images two networks classify correctly and wrongly; all rates are in percent.

    Args:
        images: The number of images, n.
        wrong: The number that the first network classifies wrongly, w.
        repaired: The number that are wrong before and correct after, c.
        broken: The number that are correct before and wrong after, b.

    >>> found = Changes(images=100, wrong=20, repaired=10, broken=3)
    >>> found.accuracy_before, found.accuracy_after, found.repair_rate, found.negative_flip_rate
    (80.0, 87.0, 50.0, 3.0)
    """

    images: int
    wrong: int
    repaired: int
    broken: int

    @property
    def accuracy_before(self) -> float:
        """The accuracy of the first network."""
        return _percent(self.images - self.wrong, self.images)

    @property
    def accuracy_after(self) -> float:
        """The accuracy of the second network."""
        return _percent(self.images - self.wrong + self.repaired - self.broken, self.images)

    @property
    def repair_rate(self) -> float:
        """RR, 100 c / w: the share of the errors before that are repaired; nan where there were none."""
        return _percent(self.repaired, self.wrong)

    @property
    def negative_flip_rate(self) -> float:
        """NFR, 100 b / n: the share of all images that become wrong."""
        return _percent(self.broken, self.images)

    @property
    def backward_trust(self) -> float:
        """BTC, 100 (1 - b / (n - w)): the share of the correct answers that stay correct; nan where there were none."""
        return _percent(self.images - self.wrong - self.broken, self.images - self.wrong)

    @property
    def backward_error(self) -> float:
        """BEC, 100 (w - c) / (w - c + b): the share of the errors after that are old ones; 100 where there are none."""
        old = self.wrong - self.repaired
        return _percent(old, old + self.broken) if old + self.broken else 100.0


def count_changes(after: Array, before: Array) -> Changes:
    """Count what changes between two networks on the same images, and assert the identity of `check_identity`.

    Args:
        after: Which images the second network classifies correctly, bool (N,), N above 0.
        before: Those of the first network.

    Returns:
        The counts.

    Raises:
        AssertionError: When the two are not of the same images, or the identity does not hold.

    >>> count_changes(np.array([True, True, False, False]), np.array([True, False, True, False]))
    Changes(images=4, wrong=2, repaired=1, broken=1)
    """
    now, was = (np.asarray(each, dtype=bool) for each in (after, before))
    if now.shape != was.shape or now.ndim != 1 or not len(now):
        raise AssertionError(f"correct predictions {now.shape} and {was.shape} are not of the same images")
    found = Changes(len(now), int((~was).sum()), int((now & ~was).sum()), int((was & ~now).sum()))
    check_identity(100 * was.mean(), 100 * now.mean(), found.repair_rate, found.negative_flip_rate)
    return found


def check_identity(
    before: float, after: float, repair_rate: float, negative_flip_rate: float, tolerance: float = TOLERANCE
) -> None:
    """Assert that ACC_after = ACC_before + RR (100 - ACC_before) / 100 - NFR, all in percent.

    It is exact where all four are of the same images (You et al., A comprehensive study of deep learning model fixing
    approaches, ICSE 2026), so that a table where it fails is wrong somewhere.

    Args:
        before: The accuracy of the first network.
        after: That of the second network.
        repair_rate: RR; nan where nothing was wrong before.
        negative_flip_rate: NFR.
        tolerance: The difference, in points, that rounding explains.

    Raises:
        AssertionError: When the identity does not hold.

    >>> check_identity(80, 87, 50, 3)
    """
    expected = before + (0.0 if math.isnan(repair_rate) else repair_rate * (100 - before) / 100) - negative_flip_rate
    if not abs(after - expected) <= tolerance:
        raise AssertionError(
            f"accuracy {before:g} before, repair rate {repair_rate:g} and negative flip rate {negative_flip_rate:g} "
            f"make {expected:g} after, not {after:g}: they are not of the same images"
        )


def flips(after: Array, before: Array) -> float:
    """Return the share, in percent, of predictions (N,) that changed, whether correct or wrong.

    >>> flips(np.array([1, 2, 3, 0]), np.array([1, 2, 0, 3]))
    50.0
    """
    now, was = np.asarray(after), np.asarray(before)
    if now.shape != was.shape:
        raise AssertionError(f"predictions {now.shape} and {was.shape} are not of the same images")
    return float(100 * (now != was).mean())


def _percent(count: int, total: int) -> float:
    return 100 * count / total if total else math.nan
