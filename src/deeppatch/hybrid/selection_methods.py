"""The methods that choose what to label, by name: each reads what it needs of the evidence and asks the oracle once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from deeppatch.features import Embeddings, embed
from deeppatch.hybrid import clusters, diversity, uncertainty
from deeppatch.hybrid.consistency import Consistency, consistency, threshold
from deeppatch.hybrid.oracle import Oracle
from deeppatch.hybrid.selection import Selection, semi_supervised, supervised
from deeppatch.runtime import generator

# how many images of a cluster share the label of its centre where features are the model's own: its failures lie
# between its clusters, so that labels propagated over whole ones are wrong more often than its own predictions
MEMBERS_PER_LABEL = 3


@dataclass
class SelectionInputs:
    """A model and a pool, uint8 pixels (N, 3, H, W) without labels, and what the one makes of the other, once asked.

    `train` are the training images. `encode`, if given, makes features (N, D) that know nothing of the model: then a
    label is propagated over its whole cluster.
    """

    model: nn.Module
    pool: Tensor
    train: Tensor
    seed: int
    views: int = 8
    encode: Callable[[Tensor], Tensor] | None = None
    batch_size: int = 256
    amp: bool = False

    @cached_property
    def embeddings(self) -> Embeddings:
        """Logits and penultimate features of the pool."""
        return embed(self.model, self.pool, batch_size=self.batch_size, amp=self.amp, label="pool")

    @cached_property
    def train_embeddings(self) -> Embeddings:
        """The same of the training images, as they are."""
        return embed(self.model, self.train, batch_size=self.batch_size, amp=self.amp, label="training images")

    @cached_property
    def consistency(self) -> Consistency:
        """What the model says of views of the pool."""
        return consistency(
            self.model, self.pool, self.views, self.generator("views"), batch_size=self.batch_size, amp=self.amp
        )

    @cached_property
    def features(self) -> Tensor:
        """What images are compared by (N, D)."""
        return self.embeddings.features if self.encode is None else self.encode(self.pool)

    @cached_property
    def train_features(self) -> Tensor:
        """The same of the training images (R, D)."""
        return self.train_embeddings.features if self.encode is None else self.encode(self.train)

    def generator(self, purpose: str) -> torch.Generator:
        """Return the generator for one purpose."""
        return generator(self.seed, "annotate", purpose)


@dataclass(frozen=True)
class Choice:
    """A selection, why each image was bought (B), and the cluster that it stands for, int64 (B,), -1 where none.

    `predictions` (N, C) are what the method saw of the pool: means over views where it looked at some, else of images.
    """

    selection: Selection
    reasons: list[str]
    clusters: Tensor
    predictions: Tensor


Method = Callable[[SelectionInputs, Oracle, int], Choice]


def no_labels(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy no label: the control that shows what training longer does."""
    none = torch.empty(0, dtype=torch.long, device=evidence.pool.device)
    return _without_clusters(evidence.embeddings.probabilities, supervised(none, none), "")


def random_sampling(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy uniformly drawn images: the control that every choice must beat."""
    return _supervised(evidence, oracle, _random_order(evidence)[:budget], "drawn at random")


def mcp(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what lies nearest to the boundaries of all pairs of classes."""
    indices = uncertainty.near_boundaries(evidence.embeddings.probabilities, budget)
    return _supervised(evidence, oracle, indices, "near a boundary of two classes")


def gini(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what has the least pure prediction."""
    indices = uncertainty.least_pure(evidence.embeddings.probabilities, budget)
    return _supervised(evidence, oracle, indices, "of no clear class")


def coreset(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what is farthest from the training images and from each other."""
    indices = diversity.k_centers(evidence.features, evidence.train_features, budget)
    return _supervised(evidence, oracle, indices, "far from all others chosen")


def badge(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what would move the last layer most, in different directions."""
    found = evidence.embeddings
    indices = diversity.diverse_gradients(found.probabilities, found.features, budget, evidence.generator("badge"))
    return _supervised(evidence, oracle, indices, "a large gradient unlike the others'")


def ssl_random(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy uniformly drawn images; the rest of the pool is read without labels."""
    indices = _random_order(evidence)[:budget]
    return _with_rest(evidence.embeddings.probabilities, oracle, indices, "drawn at random")


def ssl_consistency(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what views change most; the rest of the pool is read without labels."""
    indices = uncertainty.largest(evidence.consistency.variance, budget)
    return _with_rest(evidence.consistency.mean, oracle, indices, "predictions differ between views")


def ssl_consistency_imp(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy what views change most; the whole pool is read, what was bought with its label."""
    indices = uncertainty.largest(evidence.consistency.variance, budget)
    selection = semi_supervised(indices, oracle.ask(indices), torch.arange(len(evidence.pool), device=indices.device))
    return _without_clusters(evidence.consistency.mean, selection, "predictions differ between views")


def hybrid(evidence: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the centres of the clusters of largest summed entropy, and propagate their labels (HybridRepair).

    What is left of the budget, where there are fewer clusters, is drawn at random. Images at most as uncertain as tau
    are read without labels, each drawn in proportion to its certainty.
    """
    entropy = evidence.consistency.entropy
    found = clusters.cluster_pool(evidence.features, budget, evidence.seed)
    best = clusters.most_uncertain(found, entropy, budget)
    members, lender = clusters.propagation_targets(found, best, MEMBERS_PER_LABEL if evidence.encode is None else None)
    others = _random_order(evidence)
    others = others[~torch.isin(others, found.centers[best])][: budget - len(best)]
    members, kept = _exclude(members, others)
    extra = torch.arange(len(best), len(best) + len(others), device=best.device)
    bought = torch.cat([found.centers[best], others])
    tau = threshold(
        entropy, evidence.embeddings.logits, evidence.train_embeddings.logits, evidence.generator("threshold")
    )
    unlabelled = (entropy <= tau).nonzero().flatten()
    selection = Selection(
        bought,
        oracle.ask(bought),
        torch.cat([members, others]),
        torch.cat([lender[kept], extra]),
        unlabelled,
        1 - entropy[unlabelled],
        {"weighted": True, "tau": tau},
    )
    sizes = torch.bincount(found.cluster[found.cluster >= 0], minlength=len(found.centers))[best]
    reasons = [
        f"centre of {size} similar images, uncertain together" if size > 1 else "like no other image"
        for size in sizes.tolist()
    ]
    whose = torch.cat([best, torch.full_like(others, -1)])
    return Choice(selection, reasons + ["drawn at random"] * len(others), whose, evidence.consistency.mean)


def _random_order(evidence: SelectionInputs) -> Tensor:
    return torch.randperm(len(evidence.pool), generator=evidence.generator("random")).to(evidence.pool.device)


def _exclude(members: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return the members that are not taken by themselves, and which these are."""
    kept = ~torch.isin(members, taken)
    return members[kept], kept


def _supervised(evidence: SelectionInputs, oracle: Oracle, indices: Tensor, reason: str) -> Choice:
    return _without_clusters(evidence.embeddings.probabilities, supervised(indices, oracle.ask(indices)), reason)


def _with_rest(predictions: Tensor, oracle: Oracle, indices: Tensor, reason: str) -> Choice:
    rest = torch.ones(len(predictions), dtype=torch.bool, device=indices.device)
    rest[indices] = False
    return _without_clusters(
        predictions, semi_supervised(indices, oracle.ask(indices), rest.nonzero().flatten()), reason
    )


def _without_clusters(predictions: Tensor, selection: Selection, reason: str) -> Choice:
    count = len(selection.bought)
    return Choice(selection, [reason] * count, torch.full_like(selection.bought, -1), predictions)


METHODS: dict[str, Method] = {
    "none": no_labels, "random": random_sampling, "mcp": mcp, "gini": gini, "coreset": coreset, "badge": badge,
    "ssl-random": ssl_random, "ssl-consistency": ssl_consistency, "ssl-consistency-imp": ssl_consistency_imp,
    "hybrid": hybrid,
}  # fmt: skip
