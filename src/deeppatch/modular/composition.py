"""Compose candidate modules of different classes: how unlike they are, how accurate together, and which to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST, MOST = 50, 500  # compositions that a merge keeps
TILE = 2**24  # comparisons at a time where they need not be one sample each


def dissimilarity(kernels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return one minus the Jaccard index of every two sets of kernels, (M, M), from membership (M, kernels).

    One matrix product; `weights` (kernels,) says how many convolutions a kernel stands for (default: one).
    """
    member = kernels.float()
    both = (member if weights is None else member * weights) @ member.T
    size = both.diagonal()
    return 1 - both / (size.unsqueeze(0) + size.unsqueeze(1) - both)


@dataclass(frozen=True)
class Compositions:
    """U compositions, each of one candidate for every class of `classes`, as the beam search carries them.

    `members` (U, classes) are the candidates' indices; `best` (U, S) the highest logit of a member on every sample, and
    `right` the same where that member is the one of the sample's label, else minus infinity; `unlike` (U,) the sum of
    the dissimilarities of all pairs of members, `size` (U,) the sum of the members' shares of kernels.
    """

    classes: tuple[int, ...]
    members: Tensor
    best: Tensor
    right: Tensor
    unlike: Tensor
    size: Tensor


@dataclass(frozen=True)
class Weights:
    """What a composition is worth: `accuracy` times its accuracy, and so on with 1 minus its size."""

    accuracy: float
    unlike: float
    size: float = 0.0


def single(number: int, logits: Tensor, labels: Tensor, shares: Tensor) -> Compositions:
    """Return the candidates of one class, from their logits (P, S) of that class and shares of kernels (P,)."""
    right = logits.where(labels == number, torch.full_like(logits, -torch.inf))
    index = torch.arange(len(logits), device=logits.device).unsqueeze(1)
    return Compositions((number,), index, logits, right, torch.zeros_like(shares), shares)


def right_together(a: Compositions, b: Compositions, labels: Tensor) -> tuple[Tensor, int]:
    """Return how many samples every pair of compositions gets right, (U, V), of how many that are of their classes.

    On a tie the class that comes first wins, so those of `a`.
    """
    ours, theirs = (torch.isin(labels, torch.tensor(each.classes, device=labels.device)) for each in (a, b))
    right = _not_less(a.right[:, ours], b.best[:, ours])
    loses = _not_less(a.best[:, theirs], b.right[:, theirs])  # of no use where b is wrong: then it loses anyway
    return right + int(theirs.sum()) - loses, int(ours.sum() + theirs.sum())


def _not_less(a: Tensor, b: Tensor) -> Tensor:
    """Return in how many columns each row of `a` (U, S) is not less than each of `b` (V, S), int64 (U, V)."""
    found = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    if a.device.type != "cpu":
        step = max(1, TILE // max(1, found.numel()))
        for x, y in zip(a.T.split(step), b.T.split(step), strict=True):
            found += (x.unsqueeze(2) >= y.unsqueeze(1)).sum(0)
        return found
    # sample by sample the tile stays in the cache, and bytes add up fastest
    tile, few = torch.empty(found.shape, dtype=torch.bool), torch.zeros(found.shape, dtype=torch.uint8)
    columns, rows = a.T.contiguous().unsqueeze(2), b.T.contiguous().unsqueeze(1)
    for place, (x, y) in enumerate(zip(columns, rows, strict=True), start=1):
        few += torch.ge(x, y, out=tile).view(torch.uint8)
        if place % 255 == 0:
            found += few
            few.zero_()
    return found + few


def merge(
    a: Compositions, b: Compositions, labels: Tensor, unlike: Tensor, weights: Weights, threshold: float,
    winners: Sequence[int] | None = None,
) -> tuple[Compositions, Tensor, Tensor]:  # fmt: skip
    """Merge every composition of `a` with every one of `b`; return those kept, their worth (K,) and all worths (U, V).

    Kept are the most accurate, as many as reach `threshold` but at least 50 and at most 500; they are ordered by
    worth. The composition of `winners` (a candidate for each class) joins them where it is not among them. `unlike` is
    (classes, P, classes, P). Qi et al., ASE 2022, with compositions from cached logits.
    """
    right, count = right_together(a, b, labels)
    classes = a.classes + b.classes
    pairs = len(classes) * (len(classes) - 1) // 2
    apart = a.unlike.unsqueeze(1) + b.unlike
    for i, one in enumerate(a.classes):
        for j, two in enumerate(b.classes):
            apart = apart + unlike[one, :, two][a.members[:, i]][:, b.members[:, j]]
    size = a.size.unsqueeze(1) + b.size
    worth = weights.accuracy * (right / max(1, count)) + weights.unlike * apart / pairs
    worth = worth + weights.size * (1 - size / len(classes))

    flat = right.flatten()
    kept = flat.sort(descending=True, stable=True).indices
    kept = kept[: min(MOST, max(FEWEST, int((flat >= threshold * count).sum())))]
    kept = kept[worth.flatten()[kept].sort(descending=True, stable=True).indices]
    if winners is not None:
        kept = _with_winners(kept, a, b, winners)
    u, v = kept // len(b.members), kept % len(b.members)
    ours = a.best[u] >= b.best[v]
    merged = Compositions(
        classes, torch.cat([a.members[u], b.members[v]], 1), torch.where(ours, a.best[u], b.best[v]),
        torch.where(ours, a.right[u], b.right[v]), apart[u, v], size[u, v],
    )  # fmt: skip
    return merged, worth[u, v], worth


def _with_winners(kept: Tensor, a: Compositions, b: Compositions, winners: Sequence[int]) -> Tensor:
    rows = []
    for each in (a, b):
        wanted = torch.tensor([winners[number] for number in each.classes], device=kept.device)
        rows.append((each.members == wanted).all(1).nonzero().flatten())
    if not len(rows[0]) or not len(rows[1]):
        return kept
    pair = rows[0][:1] * len(b.members) + rows[1][:1]
    return kept if (kept == pair).any() else torch.cat([kept, pair])


@dataclass(frozen=True)
class Fitness:
    """How fit the candidates are, each (classes, P).

    `last` is the worth of the best composition that survives with the candidate in it, 0 where none does; `first` the
    best worth in the class's first merge; `alone` how well its logit tells its class from the others (AUROC).
    """

    last: Tensor
    first: Tensor
    alone: Tensor

    def ranked(self) -> Tensor:
        """Return the candidates of each class, fittest first, int64 (classes, P): by last, first, alone, index."""
        order = torch.arange(self.last.shape[1], device=self.last.device).expand_as(self.last)
        for key in (self.alone, self.first, self.last):
            order = order.gather(1, key.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
        return order


def beam(
    logits: Tensor, labels: Tensor, unlike: Tensor, shares: Tensor, order: Sequence[int], weights: Weights,
    thresholds: dict[int, float], winners: Sequence[int] | None = None,
) -> tuple[Fitness, float]:  # fmt: skip
    """Rate candidates by a beam search up a tournament; return their fitness and the best composition's accuracy.

    `logits` (classes, P, S) are of each candidate's own class; `order` says how classes meet: (0, 1), (2, 3) and so on,
    an odd last one waits. `thresholds` has an accuracy for every number of classes that a merge leads to.
    """
    classes, candidates, _ = logits.shape
    first = torch.zeros(classes, candidates, device=logits.device)
    lists = [single(number, logits[number], labels, shares[number]) for number in order]
    worth = torch.zeros(0)
    while len(lists) > 1:
        merged = []
        for a, b in zip(lists[::2], lists[1::2], strict=False):
            threshold = thresholds[len(a.classes) + len(b.classes)]
            joined, worth, every = merge(a, b, labels, unlike, weights, threshold, winners)
            for side, each in ((a, every.amax(1)), (b, every.amax(0))):
                if len(side.classes) == 1:
                    first[side.classes[0]] = each
            merged.append(joined)
        lists = merged + lists[len(lists) - len(lists) % 2 :]
    (final,) = lists
    last = torch.zeros(classes, candidates, device=logits.device)
    for column, number in enumerate(final.classes):
        last[number].scatter_reduce_(0, final.members[:, column], worth.to(last.dtype), "amax")
    alone = torch.stack([_auroc(logits[number], labels == number) for number in range(classes)])
    accuracy = (final.right[0] > -torch.inf).double().mean().item()
    return Fitness(last, first, alone), accuracy


def _auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return for each row of scores (P, S) how often a positive sample is above a negative one, ties by half; (P,)."""
    ordered = scores.sort(1).values
    below = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    ranks = (below + 1).double() / 2  # the mean rank of equal scores
    ups, downs = int(positive.sum()), int((~positive).sum())
    return ((ranks[:, positive].sum(1) - ups * (ups + 1) / 2) / max(1, ups * downs)).float()
