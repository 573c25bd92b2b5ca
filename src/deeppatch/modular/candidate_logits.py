"""The logits of candidate modules, computed no sooner than a composition with them is to be rated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# the logits (P, n) of candidates of a class, whose masks are (P, kernels) by layer, on n of the S samples (S,), bool
Evaluate = Callable[[int, Sequence[Tensor], Tensor], Tensor]


class CandidateLogits:
    """The logits (N, P, S) of the P candidates of each of N classes, for their class, on S samples with `labels`.

    A candidate runs on a class's samples once, when it is first asked for them: until then its logits there are not
    numbers. Equal chromosomes of a class run as one. `passes` counts candidates times samples.
    """

    def __init__(self, evaluate: Evaluate, labels: Tensor, classes: int) -> None:
        self.evaluate = evaluate
        self.labels = labels
        self.keys: list[list[bytes]] = [[] for _ in range(classes)]
        self.masks: list[list[Tensor]] = []
        self.firsts: list[Tensor] = []  # by class, the first of the candidates that are equal to each
        self.logits = torch.zeros(classes, 0, len(labels), device=labels.device)
        self.seen = torch.zeros(classes, 0, classes, dtype=torch.bool, device=labels.device)  # whose samples
        self.passes = 0

    def renew(self, keys: list[list[bytes]], masks: list[list[Tensor]]) -> int:
        """Take a new population, by class: chromosomes, and masks (P, kernels) by layer; return how many are new.

        The logits of chromosomes that live on stay, and those of others go.
        """
        classes, candidates, device = len(keys), len(keys[0]), self.labels.device
        logits = torch.full((classes, candidates, len(self.labels)), torch.nan, device=device)
        seen = torch.zeros(classes, candidates, classes, dtype=torch.bool, device=device)
        fresh = 0
        self.masks, self.firsts = masks, []
        for label, (before, now) in enumerate(zip(self.keys, keys, strict=True)):
            known = {key: row for row, key in enumerate(before)}
            lives = [row for row, key in enumerate(now) if key in known]
            earlier = [known[now[row]] for row in lives]
            logits[label, lives], seen[label, lives] = self.logits[label, earlier], self.seen[label, earlier]
            first = {key: row for row, key in reversed(list(enumerate(now)))}
            self.firsts.append(torch.tensor([first[key] for key in now], device=device))
            fresh += len(first.keys() - known.keys())
        self.keys, self.logits, self.seen = keys, logits, seen
        return fresh

    def ask(self, label: int, members: Tensor, classes: Sequence[int]) -> None:
        """Run candidates `members` (M,) of class `label` on those samples of `classes` that they have not seen."""
        first, seen, logits = self.firsts[label], self.seen[label], self.logits[label]
        members = first[members].unique()
        wanted = torch.isin(torch.arange(len(self.keys), device=seen.device), torch.tensor(classes, device=seen.device))
        missing = wanted & ~seen[members]
        for classes_missing in missing.unique(dim=0):
            samples = classes_missing[self.labels]
            if samples.any():
                rows = members[(missing == classes_missing).all(1)]
                found = self.evaluate(label, [mask[rows] for mask in self.masks[label]], samples)
                logits[rows.unsqueeze(1), samples.nonzero().T] = found
                self.passes += found.numel()
        seen[members] |= wanted
        for whole in (logits, seen):
            whole.copy_(whole[first])

    def state(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"keys": self.keys, "logits": self.logits, "seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        """Take up the logits of a population that `renew` was given, as if no time had passed."""
        self.keys = state["keys"]
        self.logits, self.seen = state["logits"].to(self.labels.device), state["seen"].to(self.labels.device)
