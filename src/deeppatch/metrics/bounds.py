"""Thresholds of routers that keep bounds on newly wrong answers, shown with 95 % confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deeppatch.metrics.intervals import upper_bound


@dataclass(frozen=True)
class Bound:
    """A bound on newly wrong answers, and the images that show it.

    Args:
        scores: The router's scores of independent images, (N,).
        broken: Which of these images the original network classifies correctly, and the answer above the threshold
            does not, bool (N,).
        most: The largest share of newly wrong images, in [0, 1].
    """

    scores: np.ndarray
    broken: np.ndarray
    most: float

    @property
    def allowed(self) -> int:
        """The largest number of newly wrong images with which the bound is shown; 0 where none can show it."""
        allowed = 0
        while allowed < len(self.scores) and upper_bound(allowed + 1, len(self.scores)) <= self.most:
            allowed += 1
        return allowed

    @property
    def loosest(self) -> float:
        """The lowest threshold with no more newly wrong images than that; minus infinity where all may switch."""
        allowed, breaking = self.allowed, np.sort(self.scores[self.broken])[::-1]
        if allowed < len(breaking):
            return float(breaking[allowed])
        return -math.inf if allowed else 0.0

    def broken_above(self, threshold: float) -> int:
        """Return how many images with scores above a threshold are newly wrong."""
        return int((self.broken & (self.scores > threshold)).sum())


def joint_threshold(*bounds: Bound) -> float:
    """Return the lowest threshold that keeps all bounds, with 95 % confidence for all of them together.

    Lowering a threshold can only add newly wrong images. So thresholds are tested from the strictest on, and the first
    that breaks a bound ends the test: a fixed sequence, in which no correction for the number of thresholds is needed
    (Angelopoulos et al., Learn then test, arXiv 2110.01052, section 2.3). A threshold counts as shown only where each
    bound is, which makes the test of all bounds together as strict as that of each. Where the images are too few to
    show a bound even without a newly wrong one, none is allowed, and samples with scores below 0 never switch.

    >>> scores, broken = np.array([3.0, 2.0, 1.0, -1.0] * 25), np.array([False, True, False, False] * 25)
    >>> joint_threshold(Bound(scores, broken, 0.01)), joint_threshold(Bound(scores, broken, 0.5))
    (2.0, -inf)
    """
    floor = 0.0 if any(bound.allowed == 0 for bound in bounds) else -math.inf
    return max(floor, *(bound.loosest for bound in bounds))
