"""Which pseudo-labels count: predictions aligned to a prior, and self-adaptive thresholds of confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from deeppatch.hybrid.names import WEIGHTINGS


class PseudoLabelling:
    """Running statistics of a teacher's predictions for a pool, and what follows for the predictions of a batch.

    Each prediction p is aligned to the prior: p times prior over running mean of p, normalised (Berthelot et al.,
    "ReMixMatch", ICLR 2020, section 3.1). Of the aligned predictions the running means of max p, tau, and of p, p~, are
    kept, and the threshold of class c is p~_c / max(p~) tau (Wang et al., "FreeMatch", ICLR 2023, equations 5 to 8).
    With the weighting `soft` an image counts by a Gaussian of its confidence, truncated at its running mean (Chen et
    al., "SoftMatch", ICLR 2023, equation 6), instead of wholly or not at all.

    Args:
        prior: The prior of the pool, (C,).
        momentum: The share of a running mean that remains at each step.
        weighting: One of WEIGHTINGS.
    """

    def __init__(self, prior: Tensor, momentum: float, weighting: str = "threshold") -> None:
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={weighting!r}: one of {', '.join(WEIGHTINGS)}")
        classes = len(prior)
        self.prior, self.momentum, self.weighting = prior.float(), momentum, weighting
        self.predicted = self.prior.clone()
        self.confidence = torch.full((), 1 / classes, device=prior.device)
        self.shares = torch.full((classes,), 1 / classes, device=prior.device)
        self.variance = torch.ones((), device=prior.device)

    def start_from(self, predictions: Tensor) -> None:
        """Take the statistics of a network's predictions (N, C) in place of 1 / C."""
        self.predicted = predictions.mean(0)
        aligned = self.aligned(predictions)
        self.confidence, self.shares = aligned.amax(1).mean(), aligned.mean(0)
        self.variance = aligned.amax(1).var(unbiased=False)

    def aligned(self, predictions: Tensor) -> Tensor:
        """Return predictions (N, C) with the prior in place of their running mean."""
        scaled = predictions * (self.prior / self.predicted.clamp(min=1e-6))
        return scaled / scaled.sum(1, keepdim=True)

    @property
    def thresholds(self) -> Tensor:
        """The threshold of confidence of each class, (C,)."""
        return self.shares / self.shares.max() * self.confidence

    def label(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """Take a batch of predictions (m, C) into the statistics, and return labels (m,) and weights (m,) in [0, 1]."""
        self.predicted = torch.lerp(predictions.mean(0), self.predicted, self.momentum)
        aligned = self.aligned(predictions)
        confidence, labels = aligned.max(1)
        self.confidence = torch.lerp(confidence.mean(), self.confidence, self.momentum)
        self.shares = torch.lerp(aligned.mean(0), self.shares, self.momentum)
        self.variance = torch.lerp(confidence.var(unbiased=False), self.variance, self.momentum)
        if self.weighting == "soft":
            below = (confidence - self.confidence).clamp(max=0)
            return labels, torch.exp(-below.square() / (2 * self.variance.clamp(min=1e-12)))
        return labels, (confidence > self.thresholds[labels]).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running statistics."""
        return {name: getattr(self, name) for name in ("predicted", "confidence", "shares", "variance")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take running statistics."""
        for name, value in state.items():
            setattr(self, name, value.to(self.prior.device))
