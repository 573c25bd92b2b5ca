"""Who knows the labels of the pool, and how many of them may be asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Labels = Tensor | Callable[[Tensor], Tensor]


class BudgetExceeded(Exception):
    """More labels were asked for than there is a budget for; a mistake of the program, not of the user."""


class Oracle:
    """Answers with labels of the pool, and refuses the first distinct image beyond its budget.

    `labels` int64 (N,), or a function from indices (B,) to labels (B,), are hidden behind it; without any (a pool that
    nobody has labelled yet) it answers `unknown`. Asking again for what was bought costs nothing.
    """

    def __init__(self, labels: Labels | None, budget: int, *, unknown: int = -1) -> None:
        self._labels = labels
        self._budget = budget
        self._unknown = unknown
        self._asked: set[int] = set()

    @property
    def spent(self) -> int:
        """How many distinct images have been asked for."""
        return len(self._asked)

    def ask(self, indices: Tensor) -> Tensor:
        """Return the labels (B,) of the images at `indices` (B,); OverBudget where these are too many."""
        asked = self._asked | set(indices.tolist())
        if len(asked) > self._budget:
            raise BudgetExceeded(f"{len(asked)} distinct labels asked for, {self._budget} may be")
        self._asked = asked
        if self._labels is None:
            return torch.full_like(indices, self._unknown)
        if not isinstance(self._labels, Tensor):
            return torch.as_tensor(self._labels(indices.cpu())).to(indices)
        return self._labels.to(indices.device)[indices]
