"""An oracle that returns labels of the pool within a budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Labels = Tensor | Callable[[Tensor], Tensor]


class BudgetExceeded(Exception):
    """More labels were queried than the budget allows; an error of the program, not of the user."""


class Oracle:
    """Returns labels of the pool, for at most `budget` distinct images.

    Labels are int64 (N,), or a function from indices (B,) to labels (B,). Without labels (a pool that nobody has
    labelled yet) it returns `unknown`. Querying the same image again is free.
    """

    def __init__(self, labels: Labels | None, budget: int, *, unknown: int = -1) -> None:
        self._labels = labels
        self._budget = budget
        self._unknown = unknown
        self._queried: set[int] = set()

    @property
    def labels_bought(self) -> int:
        """The number of distinct images that have been queried."""
        return len(self._queried)

    def query(self, indices: Tensor) -> Tensor:
        """Return the labels (B,) of the images at `indices` (B,); BudgetExceeded when these are too many."""
        queried = self._queried | set(indices.tolist())
        if len(queried) > self._budget:
            raise BudgetExceeded(f"{len(queried)} distinct labels queried, but the budget is {self._budget}")
        self._queried = queried
        if self._labels is None:
            return torch.full_like(indices, self._unknown)
        if not isinstance(self._labels, Tensor):
            return torch.as_tensor(self._labels(indices.cpu())).to(indices)
        return self._labels.to(indices.device)[indices]
