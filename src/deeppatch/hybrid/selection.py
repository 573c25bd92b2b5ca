"""What annotate leaves for relearn: which images to label, which share a label, and which to read without one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import UserError

UNKNOWN = -1


@dataclass(frozen=True)
class Selection:
    """Images of the pool, named by their indices in it (int64).

    - `bought` (B,): those whose labels are bought, in the order in which they were chosen, and `labels` (B,): their
      classes, UNKNOWN where nobody has given them yet;
    - `members` (M,): those that train with a label, and `lender` (M,): whose they take, an index in `bought`. Those
      bought are among them, with their own;
    - `unlabelled` (U,): those that semi-supervised training reads, and `weights` float32 (U,): how likely each is to be
      drawn. A member among them keeps its label;
    - `facts`: how they were chosen: method, tau, and whether they are drawn by weights that follow the model and are
      joined by all members (`weighted`).

    >>> selection = supervised(torch.tensor([7, 2]), torch.tensor([UNKNOWN, UNKNOWN]))
    >>> labelled = selection.with_labels(torch.tensor([1, 0]))
    >>> labelled.bought.tolist(), labelled.member_labels.tolist()
    ([7, 2], [1, 0])
    """

    bought: Tensor
    labels: Tensor
    members: Tensor
    lender: Tensor
    unlabelled: Tensor
    weights: Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def member_labels(self) -> Tensor:
        """Labels (M,) of the members: each that of its lender."""
        return self.labels[self.lender]

    def with_labels(self, labels: Tensor) -> Selection:
        """Return the same selection with the labels, int64 (B,), of `bought`, in that order; UserError if unfit."""
        labels = torch.as_tensor(labels).to(self.bought)
        if labels.shape != self.bought.shape or bool((labels < 0).any()):
            raise UserError(f"give one label, 0 or more, for each of the {len(self.bought)} images that are bought")
        return replace(self, labels=labels)

    def to_bytes(self, **facts: Any) -> bytes:
        """Serialise as safetensors; `facts` join those at hand in the file's metadata."""
        names = ("bought", "labels", "members", "lender", "unlabelled", "weights")
        return tensors_to_bytes({name: getattr(self, name) for name in names}, {**self.facts, **facts})


def selection_from_bytes(content: bytes, origin: Path) -> Selection:
    """Return what `Selection.to_bytes` made; StaleArtifact when it is damaged."""
    tensors, facts = tensors_from_bytes(content, origin)
    return Selection(**tensors, facts=facts)


def supervised(bought: Tensor, labels: Tensor) -> Selection:
    """Return a selection that trains on what was bought and reads nothing else."""
    return semi_supervised(bought, labels, bought.new_empty(0))


def semi_supervised(bought: Tensor, labels: Tensor, unlabelled: Tensor) -> Selection:
    """Return a selection whose bought images share no label, beside unlabelled ones of equal weight."""
    indices = torch.arange(len(bought), device=bought.device)
    weights = torch.ones(len(unlabelled), device=bought.device)
    return Selection(bought, labels, bought.clone(), indices, unlabelled, weights, {"weighted": False, "tau": None})
