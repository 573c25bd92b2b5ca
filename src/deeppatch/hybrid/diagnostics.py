"""Diagnostics of a selection from the true labels of a simulated pool, which are not available in practice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deeppatch.hybrid.selection import Selection
from deeppatch.metrics import accuracy


class PoolTruth:
    """The true labels of a simulated pool, int64 (N,), and the model's predictions (N,).

    No module that selects or trains may import this module; a test checks that.
    """

    def __init__(self, truth: Tensor, predictions: Tensor) -> None:
        self._truth = truth
        self._predictions = predictions.to(truth.device)

    def diagnostics(self, selection: Selection, pseudo_labels: Tensor) -> dict[str, Any]:
        """Return shares in percent, None for a share of no image; `pseudo_labels` (N,) are classes for all images."""
        device = self._truth.device
        wrong = self._predictions != self._truth
        members, unlabelled = selection.members.to(device), selection.unlabelled.to(device)
        others = unlabelled[~torch.isin(unlabelled, members)]
        return {
            "failures_in_pool_percent": _percent(wrong),
            "failures_among_bought_percent": _percent(wrong[selection.bought.to(device)]),
            "propagated_labels_correct_percent": _percent(selection.member_labels.to(device) == self._truth[members]),
            "own_predictions_correct_on_members_percent": _percent(~wrong[members]),
            "pseudo_labels_correct_on_unlabelled_percent": _percent(
                pseudo_labels.to(device)[others] == self._truth[others]
            ),
        }


def judge_of_pseudo_labels(truth: Tensor) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Return a function that tells which share of pseudo-labels is correct, from indices (m,) in the pool and labels.

    The share is in percent; `truth` int64 (N,) are the true labels of the pool.
    """

    def judge(index: Tensor, labels: Tensor) -> dict[str, float]:
        correct = labels.to(truth.device) == truth[index.to(truth.device)]
        return {"pseudo_labels_correct_percent": 100 * correct.double().mean().item()}

    return judge


def _percent(correct: Tensor) -> float | None:
    return round(100 * accuracy(correct, torch.ones_like(correct)), 2) if len(correct) else None
