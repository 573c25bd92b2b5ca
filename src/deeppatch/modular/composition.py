"""Compose candidate modules of different classes, and rate them by a beam search over their compositions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# computes the logits of candidates (M,) of a class on the samples of some classes, before they are read
ComputeLogits = Callable[[int, Tensor, Sequence[int]], None]
MIN_KEPT, MAX_KEPT = 50, 500  # compositions that a merge keeps
TILE = 2**24  # comparisons at a time on a GPU


def dissimilarity(kernels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return one minus the Jaccard index of each pair of sets of kernels, (M, M), from membership (M, kernels).

    `weights` (kernels,) has the number of convolutions that each kernel belongs to (default: one).
    """
    member = kernels.float()
    both = (member if weights is None else member * weights) @ member.T
    size = both.diagonal()
    return 1 - both / (size.unsqueeze(0) + size.unsqueeze(1) - both)


@dataclass(frozen=True)
class Compositions:
    """U compositions, each of one candidate for every class of `classes`: an intermediate result of the beam search.

    Args:
        classes: The classes.
        members: The indices of the candidates, (U, classes).
        correct: (U, S), for samples of these classes: the highest logit of a member if it is that of the sample's
            label, else minus infinity.
        dissimilarity: The sum of the dissimilarities of all pairs of members, (U,).
        size: The sum of the members' shares of kernels, (U,).
    """

    classes: tuple[int, ...]
    members: Tensor
    correct: Tensor
    dissimilarity: Tensor
    size: Tensor

    def samples(self, labels: Tensor) -> Tensor:
        """Return which samples (S,) belong to these classes, bool (S,)."""
        return torch.isin(labels, torch.tensor(self.classes, device=labels.device))

    def best(self, logits: Tensor, samples: Tensor) -> Tensor:
        """Return the highest logit of a member, (U, n), on n samples (S,), from logits (all classes, P, S)."""
        member_logits = (logits[label][:, samples][self.members[:, i]] for i, label in enumerate(self.classes))
        return reduce(torch.maximum, member_logits)


@dataclass(frozen=True)
class FitnessWeights:
    """The weights of the terms of a composition's fitness: accuracy, mean dissimilarity, and 1 minus mean size."""

    accuracy: float
    dissimilarity: float
    size: float = 0.0


@dataclass(frozen=True)
class Candidates:
    """P candidate modules of each class.

    Args:
        logits: The logits of each candidate for its own class on S samples, (classes, P, S).
        labels: The labels of the samples, int64 (S,).
        dissimilarities: The dissimilarity of each pair of candidates, (classes, P, classes, P).
        shares: The share of kernels that each candidate keeps, (classes, P).
    """

    logits: Tensor
    labels: Tensor
    dissimilarities: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Rating:
    """How compositions are rated and selected.

    Args:
        weights: The weights of the terms of the fitness.
        thresholds: By number of classes, the accuracy from which compositions are kept.
        winners: A candidate for each class, whose composition is kept in any case.
    """

    weights: FitnessWeights
    thresholds: dict[int, float]
    winners: Sequence[int] | None = None


def single_class(label: int, logits: Tensor, shares: Tensor) -> Compositions:
    """Return the compositions of a single class, from the logits (P, S) of its candidates and their shares (P,)."""
    index = torch.arange(len(logits), device=logits.device).unsqueeze(1)
    return Compositions((label,), index, logits, torch.zeros_like(shares), shares)


def _count_not_less(a: Tensor, b: Tensor) -> Tensor:
    """Count the columns in which each row of `a` (U, S) is not less than each row of `b` (V, S), int64 (U, V)."""
    counts = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    if a.device.type != "cpu":
        step = max(1, TILE // max(1, counts.numel()))
        for x, y in zip(a.T.split(step), b.T.split(step), strict=True):
            counts += (x.unsqueeze(2) >= y.unsqueeze(1)).sum(0)
        return counts
    # one sample at a time, so that the tile stays in the processor's cache, and counted in bytes
    tile, byte_counts = torch.empty(counts.shape, dtype=torch.bool), torch.zeros(counts.shape, dtype=torch.uint8)
    columns, rows = a.T.contiguous().unsqueeze(2), b.T.contiguous().unsqueeze(1)
    for count, (x, y) in enumerate(zip(columns, rows, strict=True), start=1):
        byte_counts += torch.ge(x, y, out=tile).view(torch.uint8)
        if count % 255 == 0:
            counts += byte_counts
            byte_counts.zero_()
    return counts + byte_counts


def merge(
    a: Compositions, b: Compositions, candidates: Candidates, rating: Rating
) -> tuple[Compositions, Tensor, Tensor]:
    """Merge every composition of `a` with every composition of `b`, and keep the most accurate ones.

    As many are kept as reach the threshold, but at least 50 and at most 500, and that of `rating.winners`. On a tie of
    logits the class that comes first wins, so those of `a`. Only the logits of members on samples of the classes of `a`
    and `b` are read (Qi et al., ASE 2022, but with compositions from cached logits).

    Returns:
        The K compositions that are kept, in order of fitness; their fitness (K,); and the fitness of all, (U, V).
    """
    classes, logits, labels, weights = a.classes + b.classes, candidates.logits, candidates.labels, rating.weights
    samples_a, samples_b = a.samples(labels), b.samples(labels)
    correct_a, correct_b = a.correct[:, samples_a], b.correct[:, samples_b]
    best_a, best_b = a.best(logits, samples_b), b.best(logits, samples_a)
    count = correct_a.shape[1] + correct_b.shape[1]
    # minus infinity, where b is wrong, never exceeds best_a
    correct = _count_not_less(correct_a, best_b) + correct_b.shape[1] - _count_not_less(best_a, correct_b)
    pairs = len(classes) * (len(classes) - 1) // 2
    total_dissimilarity = a.dissimilarity.unsqueeze(1) + b.dissimilarity
    for i, one in enumerate(a.classes):
        for j, two in enumerate(b.classes):
            total_dissimilarity = (
                total_dissimilarity + candidates.dissimilarities[one, :, two][a.members[:, i]][:, b.members[:, j]]
            )
    size = a.size.unsqueeze(1) + b.size
    fitness = weights.accuracy * (correct / max(1, count)) + weights.dissimilarity * total_dissimilarity / pairs
    fitness = fitness + weights.size * (1 - size / len(classes))

    flat = correct.flatten()
    kept = flat.sort(descending=True, stable=True).indices
    kept = kept[: min(MAX_KEPT, max(MIN_KEPT, int((flat >= rating.thresholds[len(classes)] * count).sum())))]
    kept = kept[fitness.flatten()[kept].sort(descending=True, stable=True).indices]
    if rating.winners is not None:
        kept = _with_winners(kept, a, b, rating.winners)
    u, v = kept // len(b.members), kept % len(b.members)
    correct_logits = torch.full((len(kept), len(labels)), -torch.inf, device=labels.device)
    correct_logits[:, samples_a] = correct_a[u].where(correct_a[u] >= best_b[v], -torch.inf)
    correct_logits[:, samples_b] = correct_b[v].where(correct_b[v] > best_a[u], -torch.inf)
    members = torch.cat([a.members[u], b.members[v]], 1)
    return Compositions(classes, members, correct_logits, total_dissimilarity[u, v], size[u, v]), fitness[u, v], fitness


def _with_winners(kept: Tensor, a: Compositions, b: Compositions, winners: Sequence[int]) -> Tensor:
    rows = []
    for side in (a, b):
        wanted = torch.tensor([winners[label] for label in side.classes], device=kept.device)
        rows.append((side.members == wanted).all(1).nonzero().flatten())
    if not len(rows[0]) or not len(rows[1]):
        return kept
    pair = rows[0][:1] * len(b.members) + rows[1][:1]
    return kept if (kept == pair).any() else torch.cat([kept, pair])


@dataclass(frozen=True)
class Fitness:
    """The fitness of candidates, each (classes, P).

    Args:
        last: The fitness of the best final composition that contains the candidate, 0 if none does.
        first: The best fitness of a composition with the candidate in the first merge of its class.
        auroc: The area under the ROC curve of its logit in that merge, for its class against the others.
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
    candidates: Candidates, order: Sequence[int], rating: Rating, compute: ComputeLogits | None = None
) -> tuple[Fitness, float]:
    """Rate candidates by a beam search, in which compositions are merged pairwise like in a tournament.

    Args:
        candidates: The candidates of all classes.
        order: The order of the classes: the first is merged with the second, the third with the fourth, and so on;
            an odd last one is merged in a later round.
        rating: How compositions are rated and selected.
        compute: Computes the logits that a merge reads: those of remaining candidates on samples of its classes.

    Returns:
        The fitness of the candidates, and the accuracy of the fittest composition, in [0, 1].
    """
    logits, labels = candidates.logits, candidates.labels
    first, auroc = torch.zeros(2, *logits.shape[:2], device=logits.device)
    lists = [single_class(label, logits[label], candidates.shares[label]) for label in order]
    fitness = torch.zeros(0)
    while len(lists) > 1:
        merged = []
        for a, b in zip(lists[::2], lists[1::2], strict=False):
            classes = a.classes + b.classes
            if compute:
                for label, members in zip(classes, (*a.members.T, *b.members.T), strict=True):
                    compute(label, members.unique(), classes)
            joined, fitness, all_fitness = merge(a, b, candidates, rating)
            own = joined.samples(labels)
            for side, best in ((a, all_fitness.amax(1)), (b, all_fitness.amax(0))):
                if len(side.classes) == 1:
                    (label,) = side.classes
                    first[label] = best
                    auroc[label] = _auroc(logits[label][:, own], labels[own] == label)
            merged.append(joined)
        lists = merged + lists[len(lists) - len(lists) % 2 :]
    (final,) = lists
    last = torch.zeros_like(first)
    for column, label in enumerate(final.classes):
        last[label].scatter_reduce_(0, final.members[:, column], fitness.to(last.dtype), "amax")
    accuracy = (final.correct[0] > -torch.inf).double().mean().item()
    return Fitness(last, first, auroc), accuracy


def _auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve (P,) of each row of scores (P, S)."""
    ordered = scores.sort(1).values
    below = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    ranks = (below + 1).double() / 2  # the mean rank of equal scores
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return ((ranks[:, positive].sum(1) - positives * (positives + 1) / 2) / max(1, positives * negatives)).float()
