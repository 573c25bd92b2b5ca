"""Compose candidate modules of different classes: how dissimilar they are, how accurate together, and which to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# asks for the logits of some candidates (M,) of a class on the samples of some classes
ComputeLogits = Callable[[int, Tensor, Sequence[int]], None]
MIN_KEPT, MAX_KEPT = 50, 500  # compositions that a merge keeps
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

    `members` (U, classes) are the candidates' indices; `correct` (U, S) on samples of these classes the highest
    logit of a member where that member is the one of the sample's label, else minus infinity; `dissimilarity` (U,) the
    sum of the dissimilarities of all pairs of members, `size` (U,) the sum of the members' shares of kernels.
    """

    classes: tuple[int, ...]
    members: Tensor
    correct: Tensor
    dissimilarity: Tensor
    size: Tensor

    def of(self, labels: Tensor) -> Tensor:
        """Return which samples (S,) are of these classes."""
        return torch.isin(labels, torch.tensor(self.classes, device=labels.device))

    def best(self, logits: Tensor, samples: Tensor) -> Tensor:
        """Return the highest logit of a member, (U, n), on n samples (S,), from logits (all classes, P, S)."""
        each = (logits[label][:, samples][self.members[:, i]] for i, label in enumerate(self.classes))
        return reduce(torch.maximum, each)


@dataclass(frozen=True)
class FitnessWeights:
    """How the fitness of a composition is made: `accuracy` times its accuracy, and so on with 1 minus its size."""

    accuracy: float
    dissimilarity: float
    size: float = 0.0


def single_class(label: int, logits: Tensor, shares: Tensor) -> Compositions:
    """Return the candidates of one class, from their logits (P, S), which it shares, and shares of kernels (P,)."""
    index = torch.arange(len(logits), device=logits.device).unsqueeze(1)
    return Compositions((label,), index, logits, torch.zeros_like(shares), shares)


def _count_not_less(a: Tensor, b: Tensor) -> Tensor:
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
    for count, (x, y) in enumerate(zip(columns, rows, strict=True), start=1):
        few += torch.ge(x, y, out=tile).view(torch.uint8)
        if count % 255 == 0:
            found += few
            few.zero_()
    return found + few


def merge(
    a: Compositions,
    b: Compositions,
    logits: Tensor,
    labels: Tensor,
    dissimilarities: Tensor,
    weights: FitnessWeights,
    threshold: float,
    winners: Sequence[int] | None = None,
) -> tuple[Compositions, Tensor, Tensor]:
    """Merge every composition of `a` with every one of `b`; return those kept, their fitness (K,), and all (U, V).

    Kept are the most accurate, as many as reach `threshold` but at least 50 and at most 500; they are ordered by
    fitness. The composition of `winners` (a candidate for each class) joins them where it is not among them.
    `dissimilarities` is (classes, P, classes, P). On a tie of logits the class that comes first wins, so those of `a`.
    Of `logits` (classes, P, S) only those of members on samples of the classes of `a` and `b` are read. Qi et al., ASE
    2022, with compositions from cached logits.
    """
    classes = a.classes + b.classes
    ours, theirs = a.of(labels), b.of(labels)
    correct_a, correct_b = a.correct[:, ours], b.correct[:, theirs]
    best_a, best_b = a.best(logits, theirs), b.best(logits, ours)
    count = correct_a.shape[1] + correct_b.shape[1]
    # where b is wrong already it loses, whatever it meets
    correct = _count_not_less(correct_a, best_b) + correct_b.shape[1] - _count_not_less(best_a, correct_b)
    pairs = len(classes) * (len(classes) - 1) // 2
    apart = a.dissimilarity.unsqueeze(1) + b.dissimilarity
    for i, one in enumerate(a.classes):
        for j, two in enumerate(b.classes):
            apart = apart + dissimilarities[one, :, two][a.members[:, i]][:, b.members[:, j]]
    size = a.size.unsqueeze(1) + b.size
    fitness = weights.accuracy * (correct / max(1, count)) + weights.dissimilarity * apart / pairs
    fitness = fitness + weights.size * (1 - size / len(classes))

    flat = correct.flatten()
    kept = flat.sort(descending=True, stable=True).indices
    kept = kept[: min(MAX_KEPT, max(MIN_KEPT, int((flat >= threshold * count).sum())))]
    kept = kept[fitness.flatten()[kept].sort(descending=True, stable=True).indices]
    if winners is not None:
        kept = _with_winners(kept, a, b, winners)
    u, v = kept // len(b.members), kept % len(b.members)
    still = torch.full((len(kept), len(labels)), -torch.inf, device=labels.device)
    still[:, ours] = correct_a[u].where(correct_a[u] >= best_b[v], -torch.inf)
    still[:, theirs] = correct_b[v].where(correct_b[v] > best_a[u], -torch.inf)
    members = torch.cat([a.members[u], b.members[v]], 1)
    return Compositions(classes, members, still, apart[u, v], size[u, v]), fitness[u, v], fitness


def _with_winners(kept: Tensor, a: Compositions, b: Compositions, winners: Sequence[int]) -> Tensor:
    rows = []
    for each in (a, b):
        wanted = torch.tensor([winners[label] for label in each.classes], device=kept.device)
        rows.append((each.members == wanted).all(1).nonzero().flatten())
    if not len(rows[0]) or not len(rows[1]):
        return kept
    pair = rows[0][:1] * len(b.members) + rows[1][:1]
    return kept if (kept == pair).any() else torch.cat([kept, pair])


@dataclass(frozen=True)
class Fitness:
    """How fit the candidates are, each (classes, P).

    `last` is the fitness of the best composition that survives with the candidate in it, 0 where none does; `first` the
    best fitness in the class's first merge; `auroc` how well its logit tells its class from the others there (AUROC).
    """

    last: Tensor
    first: Tensor
    auroc: Tensor

    def ranked(self) -> Tensor:
        """Return the candidates of each class, fittest first, int64 (classes, P): by last, first, auroc, index."""
        order = torch.arange(self.last.shape[1], device=self.last.device).expand_as(self.last)
        for key in (self.auroc, self.first, self.last):
            order = order.gather(1, key.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
        return order


def beam_search(
    logits: Tensor,
    labels: Tensor,
    dissimilarities: Tensor,
    shares: Tensor,
    order: Sequence[int],
    weights: FitnessWeights,
    thresholds: dict[int, float],
    winners: Sequence[int] | None = None,
    ask: ComputeLogits | None = None,
) -> tuple[Fitness, float]:
    """Rate candidates by a beam search up a tournament; return their fitness and the best composition's accuracy.

    `logits` (classes, P, S) are of each candidate's own class; `order` says how classes meet: (0, 1), (2, 3) and so on,
    an odd last one waits. `thresholds` has an accuracy for every number of classes that a merge leads to. A merge reads
    logits of the candidates that are left, on samples of its classes: `ask`, if given, is told so before it does.
    """
    classes, candidates, _ = logits.shape
    first, auroc = torch.zeros(2, classes, candidates, device=logits.device)
    lists = [single_class(label, logits[label], shares[label]) for label in order]
    fitness = torch.zeros(0)
    while len(lists) > 1:
        merged = []
        for a, b in zip(lists[::2], lists[1::2], strict=False):
            met = a.classes + b.classes
            if ask:
                for label, members in zip(met, (*a.members.T, *b.members.T), strict=True):
                    ask(label, members.unique(), met)
            threshold = thresholds[len(met)]
            joined, fitness, every = merge(a, b, logits, labels, dissimilarities, weights, threshold, winners)
            own = joined.of(labels)
            for side, best in ((a, every.amax(1)), (b, every.amax(0))):
                if len(side.classes) == 1:
                    (label,) = side.classes
                    first[label] = best
                    auroc[label] = _auroc(logits[label][:, own], labels[own] == label)
            merged.append(joined)
        lists = merged + lists[len(lists) - len(lists) % 2 :]
    (final,) = lists
    last = torch.zeros(classes, candidates, device=logits.device)
    for column, label in enumerate(final.classes):
        last[label].scatter_reduce_(0, final.members[:, column], fitness.to(last.dtype), "amax")
    accuracy = (final.correct[0] > -torch.inf).double().mean().item()
    return Fitness(last, first, auroc), accuracy


def _auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return for each row of scores (P, S) how often a positive sample is above a negative one, ties by half; (P,)."""
    ordered = scores.sort(1).values
    below = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    ranks = (below + 1).double() / 2  # the mean rank of equal scores
    ups, downs = int(positive.sum()), int((~positive).sum())
    return ((ranks[:, positive].sum(1) - ups * (ups + 1) / 2) / max(1, ups * downs)).float()
