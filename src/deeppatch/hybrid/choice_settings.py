"""What HybridRepair's studies vary of a selection: the threshold of entropy, the size of clusters, coreset's start."""

from __future__ import annotations

from dataclasses import dataclass

from deeppatch.errors import UserError
from deeppatch.hybrid.names import CORESET_STARTS, TAUS

CLUSTER_SIZE = 10


@dataclass(frozen=True)
class ChoiceSettings:
    """The settings of `hybrid` and of `coreset`, by default those with which HybridRepair was published.

    Args:
        tau: The largest entropy, over the log of the number of classes, of an image that is used without a label, from
            0 to 1; `auto` for the mean over images at a typical distance from the training images, `mean` for that over
            the pool (`hybrid`).
        cluster_size: The average number of images in a cluster (`hybrid`).
        coreset_start: `train`: training images are covered from the start; `pool`: image 0 of the pool is the first,
            as in the published code (`coreset`).

    Raises:
        UserError: When a value is out of range.

    >>> ChoiceSettings(tau="mean", cluster_size=5)
    ChoiceSettings(tau='mean', cluster_size=5, coreset_start='train')
    """

    tau: float | str = "auto"
    cluster_size: int = CLUSTER_SIZE
    coreset_start: str = "train"

    def __post_init__(self) -> None:
        """Raise UserError when a value is out of range."""
        if problem := tau_problem(self.tau):
            raise UserError(f"tau={self.tau!r}: {problem}")
        if self.cluster_size < 1:
            raise UserError(f"cluster_size={self.cluster_size}: give at least 1 image")
        if self.coreset_start not in CORESET_STARTS:
            raise UserError(f"coreset_start={self.coreset_start!r} is unknown; choose from {', '.join(CORESET_STARTS)}")


def tau_problem(tau: float | str) -> str | None:
    """Return the problem with a threshold, or None if it is valid."""
    valid = tau in TAUS if isinstance(tau, str) else 0 <= tau <= 1
    return None if valid else f"give {', '.join(TAUS)}, or a number from 0 to 1"
