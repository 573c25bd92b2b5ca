"""The rows, columns and cells of a ledger as plain values: networks, views, and what a network answered on a view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLEAN, MIXED = "clean", "mixed"
LATENCY = "latency_ms"  # a fact of a network that differs between runs


@dataclass(frozen=True)
class Outcomes:
    """What a network answered on the images of a view; all measures are functions of these and of the labels.

    Probabilities are the softmax of the logits in float64.

    Args:
        prediction: The predicted class, int64 (N,).
        confidence: The largest probability, float64 (N,).
        log_likelihood: The logarithm of the probability of the true class, float64 (N,).
        brier: The sum over classes of (probability - [is the true class])^2, float64 (N,), from 0 to 2.
        routed: Which network answered each image, int64 (N,), for a network that routes: 0 is the original one, and
            i the i-th patch or expert. None for a network that does not route.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    log_likelihood: np.ndarray
    brier: np.ndarray
    routed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prediction)

    def take(self, rows: np.ndarray) -> Outcomes:
        """Return the outcomes of some rows, by index or bool (N,)."""
        routed = None if self.routed is None else self.routed[rows]
        return Outcomes(
            self.prediction[rows], self.confidence[rows], self.log_likelihood[rows], self.brier[rows], routed
        )


@dataclass(frozen=True)
class LedgerView:
    """The images of one column of a ledger: clean ones, one degradation at one severity, or the mixed stream.

    Args:
        name: The name of the level, such as `fog-3` or `s=1`; `clean` and `mixed`.
        kind: The type of the degradation: `fog`, `gaussion`; `clean` and `mixed`.
        severity: The severity from 1 on (of `gaussion` the level, of one's own degradation 1); 0 for clean and mixed.
        group: The group of the type, such as `weather`; the type itself where it is in none; empty for clean and mixed.
        held_out: Whether the degradation was used neither for ranking nor for training nor for calibration.
        labels: The true classes, int64 (N,).
        image: The number of the image of test that each row shows, int64 (N,): the same image has the same number in
            all views. Degraded images without clean versions have numbers of their own.
        digest: A digest of what the images depend on, by which cells are found again.
    """

    name: str
    kind: str
    severity: int
    group: str
    held_out: bool
    labels: np.ndarray
    image: np.ndarray
    digest: str = ""

    @property
    def degraded(self) -> bool:
        """Whether the view is one degradation at one severity."""
        return self.kind not in (CLEAN, MIXED)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Network:
    """A row of a ledger: one network.

    Args:
        name: The name in tables.
        digest: A digest of weights and structure.
        method: What made it, such as `patch` or `finetune`; runs of one method that differ by seed share it.
        seed: The seed of the run that made it, where it is known.
        parameters: The number of parameters in memory.
        bytes: The size of what is stored beside the base network, in bytes, where it is known; 0 for the base.
        passes: The forward and backward passes of one image that training took, where they are known.
        facts: Further facts as JSON values, such as the command and the digests of files.
    """

    name: str
    digest: str
    method: str = ""
    seed: int | None = None
    parameters: int = 0
    bytes: int | None = None
    passes: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
