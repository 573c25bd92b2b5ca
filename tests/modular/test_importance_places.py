"""Where importance is read: against maps that are collected by hand, before and behind pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.errors import UserError
from deeppatch.graph.folding import folded
from deeppatch.modular.importance import importances
from deeppatch.modular.importance_places import before_pooling, measured_importance
from deeppatch.modular.layers import layers_to_split


class Pooled(nn.Module):
    """Pooling as a module, as a function, in front of a flattening, and none."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.four = nn.Conv2d(5, 7, 3, padding=1)
        self.pool, self.flat, self.drop, self.head = nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(28, 3)

    def maps(self, x):
        one = torch.relu(self.one(x))
        two = torch.relu(self.two(self.pool(one)))
        three = torch.relu(self.three(two))
        four = torch.relu(self.four(F.max_pool2d(three, 2)))
        return one, two, three, four

    def forward(self, x):
        return self.head(self.drop(self.flat(self.pool(self.maps(x)[-1]))))


class Branches(nn.Module):
    """Two branches, whose concatenated maps are pooled behind an activation and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3), nn.Linear(90, 2)

    def maps(self, x):
        return torch.relu(torch.cat([self.one(x), self.two(x)], 1))

    def forward(self, x):
        return self.head(F.max_pool2d(self.maps(x), 2).flatten(1))


@pytest.fixture
def case():
    torch.manual_seed(4)
    network = Pooled().eval()
    x = torch.rand(60, 3, 24, 24)[:, :, :22, :22] - 0.5
    labels = torch.arange(60) % 3
    quick = folded(network)
    return network, quick, layers_to_split(quick, x[:2]), x, labels


def test_unpooled_importance_is_that_of_the_maps_in_front_of_max_pooling(case):
    network, quick, layers, x, labels = case
    with torch.no_grad():
        maps = network.maps(x)
        probability = network(x).softmax(1)
    found = measured_importance("unpooled", quick, layers, (x, labels), 3, 1)
    for label in range(3):
        own = (labels == label).nonzero().flatten()
        sure = own[probability[own, label] >= 0.9]
        rows = sure if len(sure) else own[probability[own, label].argsort(descending=True)][:50]
        for values, layer_maps in zip(found, maps, strict=True):
            by_hand = layer_maps[rows].abs().sum((2, 3)).mean(0)
            torch.testing.assert_close(values[label], by_hand, rtol=1e-4, atol=1e-4)


def test_pooled_importance_is_that_of_what_is_read_and_only_pooled_layers_differ(case):
    _network, quick, layers, x, labels = case
    pooled, unpooled = (
        measured_importance(place, quick, layers, (x, labels), 3, 1) for place in ("pooled", "unpooled")
    )
    assert all(torch.equal(a, b) for a, b in zip(pooled, importances(quick, layers, x, labels, 3), strict=True))
    assert [torch.allclose(a, b) for a, b in zip(pooled, unpooled, strict=True)] == [False, True, False, False]
    same, seen = before_pooling(quick, layers)
    assert [list(layer.readers.values()) for layer in seen] == [[1]] * 4
    torch.testing.assert_close(same(x), quick(x))
    assert "before_pooling_0" not in dict(quick.named_modules()), "the given network is left as it was"


def test_unpooled_importance_of_a_branch_is_that_of_its_own_maps():
    torch.manual_seed(3)
    network = Branches().eval()
    x, labels = torch.rand(40, 3, 8, 8) - 0.5, torch.zeros(40, dtype=torch.int64)
    network.head.bias.data.copy_(torch.tensor([9.0, -9.0]))  # all images are confidently of class 0
    quick = folded(network)
    found = measured_importance("unpooled", quick, layers_to_split(quick, x[:2]), (x, labels), 1, 1)
    with torch.no_grad():
        by_hand = network.maps(x).abs().sum((2, 3)).mean(0)
    torch.testing.assert_close(torch.cat([each[0] for each in found]), by_hand)


def test_random_importance_depends_on_the_seed_alone(case):
    _network, quick, layers, x, labels = case
    one, same, other = (measured_importance("random", quick, layers, (part, labels), 3, seed)
                        for part, seed in ((x, 1), (x + 1, 1), (x, 2)))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert [tuple(each.shape) for each in one] == [(3, 4), (3, 6), (3, 5), (3, 7)]
    with pytest.raises(UserError, match="importance 'here': choose from pooled, unpooled, random"):
        measured_importance("here", quick, layers, (x, labels), 3, 1)
