from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deeppatch.hybrid import coverage
from deeppatch.hybrid.coverage import covering_radius, uncertainty_herding


def cloud(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def unit(features: Tensor) -> list[list[float]]:
    return [(row / row.norm()).tolist() for row in features.double()]


def greedy(features: Tensor, weights: Tensor, covered: Tensor, budget: int, radius: float) -> list[int]:
    """Greedy coverage with the whole sum written out for every candidate of every step."""
    points, chosen = unit(features), []

    def kernel(one: list[float], other: list[float]) -> float:
        return math.exp(-(math.dist(one, other) ** 2) / radius**2)

    def total(extra: list[list[float]]) -> float:
        return sum(
            weight * max((kernel(point, each) for each in [*unit(covered), *extra]), default=0)
            for weight, point in zip(weights.tolist(), points, strict=True)
        )

    for _ in range(min(budget, len(points))):
        free = [index for index in range(len(points)) if index not in chosen]
        chosen.append(max(free, key=lambda index: total([points[each] for each in [*chosen, index]])))
    return chosen


@pytest.mark.parametrize(("radius", "known"), [(0.2, 5), (0.7, 5), (0.7, 0), (3.0, 1)])
def test_herding_is_greedy_coverage_though_few_gains_are_computed_again(radius, known, monkeypatch):
    monkeypatch.setattr(coverage, "KERNEL_VALUES", 40 * 7)
    monkeypatch.setattr(coverage, "FIRST_CANDIDATES", 3)
    features, covered = cloud(40, 4), cloud(known, 4, 1)
    weights = torch.rand(40, generator=torch.Generator().manual_seed(2))
    computed, gains = [], coverage._gains
    monkeypatch.setattr(coverage, "_gains", lambda part, *given: computed.append(len(part)) or gains(part, *given))
    assert uncertainty_herding(features, weights, covered, 8, radius).tolist() == greedy(
        features, weights, covered, 8, radius
    )
    assert sum(computed) < 8 * 40
    assert max(computed) <= 7


def test_what_is_certain_or_covered_is_not_chosen_before_the_rest():
    groups = torch.eye(3).repeat_interleave(10, 0) + 0.01 * cloud(30, 3)
    certain = torch.tensor([0.0] * 10 + [0.5] * 20)
    assert int(uncertainty_herding(groups, certain, torch.eye(3)[2:], 1, 0.3)[0]) // 10 == 1
    unknown = uncertainty_herding(groups, certain, torch.empty(0, 3), 2, 0.3)
    assert sorted((unknown // 10).tolist()) == [1, 2], "the second covers what the first does not"


def test_no_image_is_chosen_twice_and_where_nothing_is_uncertain_all_count_alike():
    features = torch.cat([torch.ones(4, 3), cloud(6, 3)])
    every = uncertainty_herding(features, torch.ones(10), features, 99, 0.5)
    assert sorted(every.tolist()) == list(range(10)), "nothing is left to cover"
    none = torch.empty(0, 3)
    alike = [uncertainty_herding(features, weights, none, 3, 0.5) for weights in (torch.zeros(10), torch.ones(10))]
    assert torch.equal(*alike)
    assert uncertainty_herding(features, torch.ones(10), none, 0, 0.5).tolist() == []


def test_the_radius_is_the_mean_distance_to_the_image_that_completes_a_share(monkeypatch):
    monkeypatch.setattr(coverage, "KERNEL_VALUES", 100)
    features = cloud(50, 3)
    points = unit(features)
    for budget, share in ((5, 10), (50, 1), (99, 1), (1, 49)):
        nth = [sorted(math.dist(one, other) for other in points)[share] for one in points]
        found = covering_radius(features, budget, torch.Generator().manual_seed(1))
        assert found == pytest.approx(sum(nth) / 50, rel=1e-3)
    assert covering_radius(torch.ones(9, 2), 3, torch.Generator()) == coverage.LEAST_RADIUS, "copies"


def test_the_radius_reads_a_sample_by_seed(monkeypatch):
    monkeypatch.setattr(coverage, "SAMPLED_IMAGES", 5)
    radii = [covering_radius(cloud(50, 3), 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert radii[0] == radii[1] != radii[2]
