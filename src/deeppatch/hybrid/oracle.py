"""An oracle that returns labels of the pool within a budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deeppatch.errors import UserError

Labels = Tensor | Callable[[Tensor], Tensor]


def whole_labels(labels: object, images: Tensor) -> Tensor:
    """Return labels that a user gave as int64 (B,), where `images` (B,) are; UserError where they are none."""
    try:
        found = torch.as_tensor(labels)
        whole = found.to(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"labels are {type(labels).__name__}; give whole numbers, one for each image") from error
    if found.shape != images.shape:
        raise UserError(f"labels are {tuple(found.shape)}; give one label for each of the {len(images)} images")
    if found.dtype == torch.bool or not bool((whole == found.to(images.device)).all()):
        raise UserError("labels are not whole numbers; give the number of the class of each image")
    return whole


def check_oracle(labels: Labels | None, count: int) -> None:
    """Raise UserError where the labels of an oracle are a tensor, and not one of whole numbers for `count` images."""
    if labels is not None and not callable(labels):
        whole_labels(labels, torch.empty(count, dtype=torch.long))


class BudgetExceeded(Exception):
    """More labels were queried than the budget allows; an error of the program, not of the user."""


class Oracle:
    """Returns labels of the pool, for at most `budget` distinct images.

    Labels are int64 (N,), or a function from indices (B,) to labels (B,). Without labels (a pool that nobody has
    labelled yet) it returns `unknown`. With `images`, the size of the pool, labels of another number are a UserError.
    Querying the same image again is free.
    """

    def __init__(self, labels: Labels | None, budget: int, *, unknown: int = -1, images: int | None = None) -> None:
        if images is not None:
            check_oracle(labels, images)
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
            return whole_labels(self._labels(indices.cpu()), indices)
        return self._labels.to(indices.device)[indices]
