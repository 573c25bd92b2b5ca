"""The methods that choose images to label, by name; each queries the oracle once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeppatch.errors import UserError
from deeppatch.hybrid import clusters, coverage, diversity, uncertainty
from deeppatch.hybrid.names import PRIOR
from deeppatch.hybrid.oracle import Oracle
from deeppatch.hybrid.selection import Selection, semi_supervised, supervised
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.metrics.purity import least_pure

# the number of images of a cluster that get the label of its centre when features are the model's own: the model fails
# between its clusters, so labels that are propagated to whole clusters are wrong more often than its predictions
MEMBERS_PER_LABEL = 3


@dataclass(frozen=True)
class Choice:
    """The result of a method.

    Args:
        selection: The selection.
        reasons: Why each image was chosen, (B).
        clusters: The cluster that each image represents, int64 (B,), -1 for none.
        predictions: The predictions for the pool, (N, C): means over views if the method uses views.
    """

    selection: Selection
    reasons: list[str]
    clusters: Tensor
    predictions: Tensor

    @property
    def labels_bought(self) -> int:
        """The number of distinct images whose labels are bought, or still to be given."""
        return len(self.selection.bought.unique())


Method = Callable[[SelectionInputs, Oracle, int], Choice]


def no_labels(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy no label: the control for the effect of longer training."""
    none = torch.empty(0, dtype=torch.long, device=inputs.pool.device)
    return _without_clusters(inputs.embeddings.probabilities, supervised(none, none), "")


def random_sampling(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy uniformly sampled images: the baseline of all methods."""
    return _supervised(inputs, oracle, _random_order(inputs)[:budget], "drawn at random")


def mcp(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images nearest to the boundaries of all pairs of classes (MCP)."""
    indices = uncertainty.near_boundaries(inputs.embeddings.probabilities, budget)
    return _supervised(inputs, oracle, indices, "near a boundary of two classes")


def margin_sampling(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images with the smallest gap between the two likeliest classes (margin)."""
    indices = uncertainty.smallest_margins(inputs.embeddings.probabilities, budget)
    return _supervised(inputs, oracle, indices, "the two likeliest classes are nearly equally likely")


def entropy_sampling(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images whose predictions have the largest entropy."""
    indices = uncertainty.largest_entropies(inputs.embeddings.probabilities, budget)
    return _supervised(inputs, oracle, indices, "the prediction is spread over several classes")


def gini(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images with the least pure predictions (DeepGini)."""
    indices = least_pure(inputs.embeddings.probabilities, budget)
    return _supervised(inputs, oracle, indices, "of no clear class")


def coreset(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images farthest from the training images and from each other (core-set).

    Where it starts from the pool, the first is image 0, as in HybridRepair's code, and training images cover nothing.
    """
    from_train = inputs.settings.coreset_start == "train"
    indices = diversity.k_centers(inputs.features, inputs.train_features if from_train else None, budget)
    return _supervised(inputs, oracle, indices, "far from all others chosen")


def badge(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy images with large and diverse gradients of the last layer (BADGE)."""
    embeddings = inputs.embeddings
    indices = diversity.diverse_gradients(
        embeddings.probabilities, embeddings.features, budget, inputs.generator("badge")
    )
    return _supervised(inputs, oracle, indices, "a large gradient unlike the others'")


def typiclust(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the most typical image of each of the largest clusters that no known class covers (TypiClust)."""
    found = clusters.typical_images(inputs.features, inputs.class_means, budget, inputs.seed)
    choice = _supervised(inputs, oracle, found.indices, "")
    reasons = [f"typical of {size} similar images" if size > 1 else "like no other image" for size in found.sizes]
    return replace(choice, reasons=reasons, clusters=found.cluster)


def uherding(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images that cover the most uncertainty of the pool (UHerding).

    An image's weight is 1 minus the margin of its calibrated prediction, as published. The radius of the kernel is the
    one by which as many images as the budget allows could just cover the pool: the published one, the smallest distance
    between labelled images, is near 0 where these are thousands of training images.
    """
    radius = coverage.covering_radius(inputs.features, budget, inputs.generator("radius"))
    weights = 1 - uncertainty.margins(inputs.calibrated)
    indices = coverage.uncertainty_herding(inputs.features, weights, inputs.train_features, budget, radius)
    return _supervised(inputs, oracle, indices, "stands for similar images of uncertain class")


def ssl_random(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy uniformly sampled images, and use the rest of the pool without labels."""
    indices = _random_order(inputs)[:budget]
    return _with_rest(inputs.embeddings.probabilities, oracle, indices, "drawn at random")


def ssl_consistency(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images whose predictions vary most over views, and use the rest of the pool without labels."""
    indices = uncertainty.largest(inputs.consistency.variance, budget)
    return _with_rest(inputs.consistency.mean, oracle, indices, "predictions differ between views")


def ssl_consistency_imp(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the images whose predictions vary most over views, and use the whole pool, these with their labels."""
    indices = uncertainty.largest(inputs.consistency.variance, budget)
    selection = semi_supervised(indices, oracle.query(indices), torch.arange(len(inputs.pool), device=indices.device))
    return _without_clusters(inputs.consistency.mean, selection, "predictions differ between views")


def hybrid(inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Buy the centres of the clusters with the largest sums of entropy, and propagate their labels (HybridRepair).

    If there are fewer clusters than labels, the rest of the budget is spent on random images. Images with an entropy of
    at most tau are used without labels, each drawn in proportion to its certainty.
    """
    entropy = inputs.consistency.entropy
    pool_clusters = clusters.cluster_pool(inputs.features, budget, inputs.seed, inputs.settings.cluster_size)
    best = clusters.most_uncertain(pool_clusters, entropy, budget)
    members, lender = clusters.propagation_targets(
        pool_clusters, best, MEMBERS_PER_LABEL if inputs.encode is None else None
    )
    others = _random_order(inputs)
    others = others[~torch.isin(others, pool_clusters.centers[best])][: budget - len(best)]
    members, kept = _exclude(members, others)
    extra = torch.arange(len(best), len(best) + len(others), device=best.device)
    bought = torch.cat([pool_clusters.centers[best], others])
    tau = inputs.tau
    unlabelled = (entropy <= tau).nonzero().flatten()
    selection = Selection(
        bought,
        oracle.query(bought),
        torch.cat([members, others]),
        torch.cat([lender[kept], extra]),
        unlabelled,
        1 - entropy[unlabelled],
        {"weighted": True, "tau": tau},
    )
    inside = pool_clusters.cluster[pool_clusters.cluster >= 0]
    sizes = torch.bincount(inside, minlength=len(pool_clusters.centers))[best]
    reasons = [
        f"centre of {size} similar images, uncertain together" if size > 1 else "like no other image"
        for size in sizes.tolist()
    ]
    whose = torch.cat([best, torch.full_like(others, -1)])
    return Choice(selection, reasons + ["drawn at random"] * len(others), whose, inputs.consistency.mean)


def _random_order(inputs: SelectionInputs) -> Tensor:
    return torch.randperm(len(inputs.pool), generator=inputs.generator("random")).to(inputs.pool.device)


def _exclude(members: Tensor, bought: Tensor) -> tuple[Tensor, Tensor]:
    """Return the members that are not bought themselves, and a mask of them."""
    kept = ~torch.isin(members, bought)
    return members[kept], kept


def _supervised(inputs: SelectionInputs, oracle: Oracle, indices: Tensor, reason: str) -> Choice:
    return _without_clusters(inputs.embeddings.probabilities, supervised(indices, oracle.query(indices)), reason)


def _with_rest(predictions: Tensor, oracle: Oracle, indices: Tensor, reason: str) -> Choice:
    rest = torch.ones(len(predictions), dtype=torch.bool, device=indices.device)
    rest[indices] = False
    return _without_clusters(
        predictions, semi_supervised(indices, oracle.query(indices), rest.nonzero().flatten()), reason
    )


def _without_clusters(predictions: Tensor, selection: Selection, reason: str) -> Choice:
    count = len(selection.bought)
    return Choice(selection, [reason] * count, torch.full_like(selection.bought, -1), predictions)


METHODS: dict[str, Method] = {
    "none": no_labels, "random": random_sampling, "mcp": mcp, "margin": margin_sampling,
    "entropy": entropy_sampling, "gini": gini, "coreset": coreset, "badge": badge, "typiclust": typiclust,
    "uherding": uherding, "ssl-random": ssl_random, "ssl-consistency": ssl_consistency,
    "ssl-consistency-imp": ssl_consistency_imp, "hybrid": hybrid,
}  # fmt: skip


def known_method(method: str) -> None:
    """Raise UserError when there is no such method."""
    if method == PRIOR:
        raise UserError(f"method {method!r} chooses no images: it corrects the network; call deeppatch.correct_prior")
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")


def chosen_by(method: str, inputs: SelectionInputs, oracle: Oracle, budget: int) -> Choice:
    """Choose `budget` images by a key of METHODS, which the facts of the selection then name."""
    choice = METHODS[method](inputs, oracle, budget)
    selection = replace(choice.selection, facts={**choice.selection.facts, "method": method})
    return replace(choice, selection=selection)
