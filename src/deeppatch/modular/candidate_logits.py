"""The logits of candidate modules, computed lazily when a composition with them is rated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# the logits (P, n) of candidates of a class, whose masks are (P, kernels) by layer, on n of the S samples (S,), bool
Evaluate = Callable[[int, Sequence[Tensor], Tensor], Tensor]


class CandidateLogits:
    """The logits (N, P, S) of the P candidates of each of N classes, for their class, on S samples with `labels`.

    The logits of a candidate on the samples of a class are NaN until they are computed, which happens once. Equal
    chromosomes of a class are computed once. `passes` counts candidates times samples.
    """

    def __init__(self, evaluate: Evaluate, labels: Tensor, classes: int) -> None:
        self.evaluate = evaluate
        self.labels = labels
        self.keys: list[list[bytes]] = [[] for _ in range(classes)]
        self.masks: list[list[Tensor]] = []
        self.representatives: list[Tensor] = []  # by class, for each candidate the first one equal to it
        self.logits = torch.zeros(classes, 0, len(labels), device=labels.device)
        self.computed = torch.zeros(classes, 0, classes, dtype=torch.bool, device=labels.device)
        self.passes = 0

    def set_population(self, keys: list[list[bytes]], masks: list[list[Tensor]]) -> int:
        """Replace the population, and return the number of new chromosomes.

        The logits of chromosomes that were in the previous population are kept.

        Args:
            keys: The chromosomes of each class as bytes.
            masks: Their masks (P, kernels) by layer, for each class.
        """
        classes, candidates, device = len(keys), len(keys[0]), self.labels.device
        logits = torch.full((classes, candidates, len(self.labels)), torch.nan, device=device)
        computed = torch.zeros(classes, candidates, classes, dtype=torch.bool, device=device)
        new = 0
        self.masks, self.representatives = masks, []
        for label, (before, now) in enumerate(zip(self.keys, keys, strict=True)):
            known = {key: row for row, key in enumerate(before)}
            kept = [row for row, key in enumerate(now) if key in known]
            previous = [known[now[row]] for row in kept]
            logits[label, kept], computed[label, kept] = self.logits[label, previous], self.computed[label, previous]
            first = {key: row for row, key in reversed(list(enumerate(now)))}
            self.representatives.append(torch.tensor([first[key] for key in now], device=device))
            new += len(first.keys() - known.keys())
        self.keys, self.logits, self.computed = keys, logits, computed
        return new

    def compute(self, label: int, members: Tensor, classes: Sequence[int]) -> None:
        """Compute the missing logits of candidates `members` (M,) of class `label` on the samples of `classes`."""
        first, computed, logits = self.representatives[label], self.computed[label], self.logits[label]
        members = first[members].unique()
        wanted = torch.isin(
            torch.arange(len(self.keys), device=computed.device), torch.tensor(classes, device=computed.device)
        )
        missing = wanted & ~computed[members]
        for classes_missing in missing.unique(dim=0):
            samples = classes_missing[self.labels]
            if samples.any():
                rows = members[(missing == classes_missing).all(1)]
                values = self.evaluate(label, [mask[rows] for mask in self.masks[label]], samples)
                logits[rows.unsqueeze(1), samples.nonzero().T] = values
                self.passes += values.numel()
        computed[members] |= wanted
        for whole in (logits, computed):
            whole.copy_(whole[first])

    def state(self) -> dict[str, Any]:
        """Return the state as values for a checkpoint."""
        return {"keys": self.keys, "logits": self.logits, "computed": self.computed}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the logits that `state` returned, after `set_population` with the same population."""
        self.keys = state["keys"]
        self.logits, self.computed = state["logits"].to(self.labels.device), state["computed"].to(self.labels.device)
