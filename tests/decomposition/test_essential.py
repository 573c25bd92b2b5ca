"""Noise at a class's features and at all others, against a plain loop over images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.decomposition.essential import Essential, essential
from deeppatch.decomposition.features import Features
from deeppatch.runtime import generator

CLASSES, WIDTH, SEED = 5, 12, 3


@pytest.fixture
def head() -> nn.Linear:
    """A head that tells four classes apart in values that are 1 in the mean, and never names the fifth."""
    torch.manual_seed(2)
    head = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        head.bias.copy_(-head.weight.sum(1))
        head.bias[-1] = -100
    return head


@pytest.fixture
def features(head) -> Features:
    """A hundred images, most of which the head gets right; the last class has none."""
    draw = torch.Generator().manual_seed(4)
    values = 2 * torch.rand(100, WIDTH, generator=draw)
    with torch.no_grad():
        labels = (head(values) + 0.2 * torch.randn(100, CLASSES, generator=draw)).argmax(1)
    return Features(values, labels)


def drawn(k: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(WIDTH, generator=draw)[:k] for _ in range(CLASSES)])


def plain(
    features: Features, head: nn.Linear, indices: torch.Tensor, noise: torch.Tensor | None, at: bool
) -> list[int]:
    """The oracle: right answers of each class, one image after the other, noise put feature by feature."""
    right = [0] * CLASSES
    for image, label in enumerate(features.labels.tolist()):
        row = features.values[image].tolist()
        for place in range(WIDTH):
            if noise is not None and (place in indices[label].tolist()) == at:
                row[place] = noise[image, place].item()
        logits = [
            sum(weight * value for weight, value in zip(weights, row, strict=True)) + bias
            for weights, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
        ]
        right[label] += logits.index(max(logits)) == label
    return right


@pytest.mark.parametrize("k", [1, 4, 9])
def test_counts_are_those_of_a_loop_over_images(features, head, k):
    indices = drawn(k)
    found = essential(features, head, indices, draws=3, seed=SEED)
    assert found.images.tolist() == [features.labels.tolist().count(label) for label in range(CLASSES)]
    assert found.whole.tolist() == plain(features, head, indices, None, True)
    for draw in range(3):
        noise = torch.randn(100, WIDTH, generator=generator(SEED, "essential", draw))
        assert found.noise_at[draw].tolist() == plain(features, head, indices, noise, True)
        assert found.noise_elsewhere[draw].tolist() == plain(features, head, indices, noise, False)
    assert 0 < found.noise_at.sum() < 3 * found.whole.sum()
    assert not torch.equal(found.noise_at, found.noise_elsewhere)


def test_shapes_are_classes_and_draws_by_classes(features, head):
    found = essential(features, head, drawn(2), draws=4, seed=SEED)
    assert found.images.shape == found.whole.shape == (CLASSES,)
    assert found.noise_at.shape == found.noise_elsewhere.shape == (4, CLASSES)
    assert all(counts.dtype == torch.int64 for counts in vars(found).values())
    assert found.images.sum() == 100
    assert (found.images[-1], found.whole[-1]) == (0, 0), "a class without images counts none"


def same(one: Essential, other: Essential) -> bool:
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def test_counts_depend_on_the_seed_and_on_nothing_drawn_before(features, head):
    first = essential(features, head, drawn(4), draws=2, seed=SEED)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    assert same(essential(features, head, drawn(4), draws=2, seed=SEED), first)
    assert torch.equal(torch.get_rng_state(), before)
    other = essential(features, head, drawn(4), draws=2, seed=SEED + 1)
    assert not torch.equal(other.noise_at, first.noise_at)
    assert torch.equal(other.whole, first.whole)


def test_more_draws_go_on_where_fewer_ended_and_each_is_another(features, head):
    few, many = (essential(features, head, drawn(4), draws=draws, seed=SEED) for draws in (2, 5))
    assert torch.equal(many.noise_at[:2], few.noise_at)
    assert torch.equal(many.noise_elsewhere[:2], few.noise_elsewhere)
    assert len({tuple(row) for row in many.noise_at.tolist()}) > 2


def test_noise_at_no_other_feature_changes_nothing(features, head):
    everything = torch.arange(WIDTH).repeat(CLASSES, 1)
    found = essential(features, head, everything, draws=2, seed=SEED)
    assert found.noise_elsewhere.tolist() == [found.whole.tolist()] * 2
    assert found.noise_at.sum() < 2 * found.whole.sum()


def test_features_and_head_stay_as_they_were(features, head):
    values, weight = features.values.clone(), head.weight.detach().clone()
    essential(features, head, drawn(4), draws=1, seed=SEED)
    assert torch.equal(features.values, values)
    assert torch.equal(head.weight, weight)
    assert head.weight.grad is None
