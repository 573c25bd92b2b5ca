from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deeppatch.hybrid.uncertainty import (
    index_within_group,
    largest,
    largest_entropies,
    margins,
    near_boundaries,
    smallest_margins,
)


def predictions(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def round_by_round(probabilities: Tensor, budget: int) -> list[int]:
    """MCP as it is described: buckets, whole rounds over them, and the largest ratios of the last one."""
    buckets: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for place, row in enumerate(probabilities.tolist()):
        first, second = sorted(range(len(row)), key=lambda c: -row[c])[:2]
        buckets.setdefault((first, second), []).append((row[second] / row[first], place))
    for bucket in buckets.values():
        bucket.sort(key=lambda entry: (-entry[0], entry[1]))
    chosen: list[int] = []
    while budget > len(chosen) and (heads := [bucket for _, bucket in sorted(buckets.items()) if bucket]):
        if budget - len(chosen) < len(heads):
            heads = sorted(heads, key=lambda bucket: -bucket[0][0])[: budget - len(chosen)]
        chosen += [bucket.pop(0)[1] for bucket in heads]
    return chosen


@pytest.mark.parametrize("classes", [2, 3, 10, 43])
@pytest.mark.parametrize("budget", [1, 5, 37, 90, 200, 300])
def test_mcp_is_its_description(classes, budget):
    probabilities = predictions(200, classes, budget)
    found = near_boundaries(probabilities, budget).tolist()
    assert found == round_by_round(probabilities, budget)
    assert len(set(found)) == len(found) == min(budget, 200)


def test_mcp_serves_every_pair_of_classes_before_any_twice():
    probabilities = torch.tensor([[0.5, 0.49, 0.01]] * 5 + [[0.1, 0.8, 0.1001]] + [[0.02, 0.08, 0.9]])
    assert near_boundaries(probabilities, 3).tolist() == [0, 5, 6]
    assert near_boundaries(probabilities, 2).tolist() == [0, 5], (
        "the nearest to a boundary, where not all can be served"
    )
    assert near_boundaries(probabilities, 4).tolist() == [0, 5, 6, 1], "of equals, the first"


@pytest.mark.parametrize("classes", [2, 10])
def test_margin_and_entropy_are_their_definitions(classes):
    rows = predictions(60, classes, 3)
    gaps, spreads = [], []
    for row in rows.tolist():
        first, second = sorted(row, reverse=True)[:2]
        gaps.append(first - second)
        spreads.append(-sum(each * math.log(each) for each in row))
    assert margins(rows).tolist() == pytest.approx(gaps, abs=1e-6)
    assert smallest_margins(rows, 9).tolist() == sorted(range(60), key=gaps.__getitem__)[:9]
    assert largest_entropies(rows, 9).tolist() == sorted(range(60), key=lambda index: -spreads[index])[:9]


def test_margin_sees_two_classes_and_entropy_all():
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.4, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    assert smallest_margins(rows, 3).tolist() == [0, 3, 1]
    assert largest_entropies(rows, 9).tolist() == [1, 0, 3, 2]


def test_largest_come_first_and_ties_in_order():
    assert largest(torch.tensor([0.1, 0.9, 0.9, 0.3]), 3).tolist() == [1, 2, 3]


def test_places_are_counted_within_groups():
    assert index_within_group(torch.tensor([4, 4, 4, 7, 9, 9])).tolist() == [0, 1, 2, 0, 0, 1]
    assert index_within_group(torch.tensor([], dtype=torch.long)).tolist() == []
