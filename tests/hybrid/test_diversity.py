from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeppatch.hybrid import diversity
from deeppatch.hybrid.diversity import diverse_gradients, k_centers


def cloud(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def farthest_first(features: Tensor, covered: Tensor, budget: int) -> list[int]:
    """Greedy k-center with all distances at hand."""
    covered, chosen = list(covered.double()), []
    for _ in range(min(budget, len(features))):
        gaps = [
            -1.0 if place in chosen else min(float((row.double() - each).norm()) for each in covered)
            for place, row in enumerate(features)
        ]
        chosen.append(max(range(len(gaps)), key=gaps.__getitem__))
        covered.append(features[chosen[-1]].double())
    return chosen


def test_coreset_is_greedy_k_center_from_the_training_images(monkeypatch):
    monkeypatch.setattr(diversity, "CHUNK", 7)
    features, covered = cloud(40, 5), cloud(9, 5, 1)
    found = k_centers(features, covered, 12).tolist()
    assert found == farthest_first(features, covered, 12)
    assert len(set(found)) == 12


def test_coreset_does_not_start_at_the_first_image_and_heeds_what_is_covered():
    features = torch.tensor([[0.0, 0], [10, 0], [0, 3], [10, 0.1]])
    assert k_centers(features, torch.tensor([[0.0, 0]]), 2).tolist() == [3, 2]
    assert k_centers(features, torch.tensor([[10.0, 0]]), 1).tolist() == [2]


def test_coreset_buys_no_image_twice_even_among_copies():
    copies = torch.ones(6, 3)
    assert sorted(k_centers(copies, torch.ones(1, 3), 9).tolist()) == list(range(6))
    assert k_centers(copies, torch.ones(1, 3), 0).tolist() == []


def dense(probabilities: Tensor, features: Tensor, budget: int, draw: torch.Generator) -> list[int]:
    """BADGE with every gradient written out: k-means++ seeding over N x C D numbers."""
    count, classes = probabilities.shape
    gradients = torch.zeros(count, classes, features.shape[1], dtype=torch.float64)
    for place in range(count):
        error = -probabilities[place].double()
        error[probabilities[place].argmax()] += 1
        gradients[place] = error[:, None] * features[place].double()[None]
    gradients = gradients.flatten(1)
    chosen = [int(gradients.norm(dim=1).argmax())]
    lots = torch.rand(min(budget, count), generator=draw, dtype=torch.float64).tolist()
    for lot in lots[1:]:
        weights = torch.cdist(gradients, gradients[chosen]).amin(1).square()
        weights[chosen] = 0
        chosen.append(int((weights.cumsum(0) > lot * weights.sum()).nonzero()[0]))
    return chosen


@pytest.mark.parametrize("classes", [2, 10, 43])
def test_badge_is_k_means_plus_plus_on_the_gradients_whatever_the_number_of_classes(classes):
    features, logits = cloud(60, 8), cloud(60, classes, 1)
    probabilities = logits.mul(2).softmax(1)
    draws = [torch.Generator().manual_seed(4) for _ in range(2)]
    found = diverse_gradients(probabilities, features, 25, draws[0]).tolist()
    assert found == dense(probabilities, features, 25, draws[1])
    assert len(set(found)) == 25


def test_badge_leaves_what_it_reads_and_repeats_by_its_generator():
    features, probabilities = cloud(50, 4), cloud(50, 3, 1).softmax(1)
    before = probabilities.clone()
    first, again, other = (
        diverse_gradients(probabilities, features, 10, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(probabilities, before)
    assert torch.equal(first, again)
    assert first[0] == other[0], "the longest gradient is no matter of chance"
    assert not torch.equal(first, other)


def test_badge_buys_no_image_twice_where_gradients_are_equal_or_nothing():
    same = torch.tensor([[0.6, 0.4]] * 5)
    assert sorted(diverse_gradients(same, torch.ones(5, 2), 9, torch.Generator()).tolist()) == list(range(5))
    certain = torch.tensor([[1.0, 0.0]] * 4)
    assert sorted(diverse_gradients(certain, torch.ones(4, 2), 4, torch.Generator()).tolist()) == list(range(4))


@pytest.mark.parametrize("lot", [0.0, 0.25, 0.9999, 1 - 2**-53])
def test_a_lot_never_falls_on_a_place_without_weight(lot):
    weights = torch.tensor([0, 0.1, 0, 0.3, 0.6, 0, 0], dtype=torch.float64)
    place = diversity._sample_index(weights, weights > 0, torch.tensor(lot, dtype=torch.float64))
    assert weights[place] > 0


def test_coreset_may_start_from_the_first_image_of_the_pool_as_published():
    features = cloud(20, 4)
    assert k_centers(features, None, 6).tolist() == [0, *farthest_first(features, features[:1], 5)]
