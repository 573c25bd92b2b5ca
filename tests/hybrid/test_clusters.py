from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.hybrid import clusters
from deeppatch.hybrid.clusters import PoolClusters, most_uncertain, propagation_targets


@pytest.fixture
def features() -> Tensor:
    """Six tight groups of directions, 20 images each, and 40 images of noise; 10 dimensions."""
    draw = torch.Generator().manual_seed(3)
    groups = torch.randn(6, 1, 10, generator=draw) * 4 + 0.15 * torch.randn(6, 20, 10, generator=draw)
    return torch.cat([groups.flatten(0, 1), 2 * torch.randn(40, 10, generator=draw)])


def test_clusters_have_centres_that_are_members_distinct_and_nearest_to_the_mean(features):
    found = clusters.cluster_pool(features, 8, 1)
    inside = found.cluster >= 0
    assert 100 <= inside.sum() <= 150, "what lies alone is noise"
    assert inside[:120].float().mean() > 0.95
    count = len(found.centers)
    assert count == max(int(inside.sum()) // 10, 8)
    assert torch.equal(found.cluster[inside].unique(), torch.arange(count)), "numbered without gaps"
    assert torch.equal(found.cluster[found.centers], torch.arange(count)), "a centre lies in its own cluster"
    assert len(found.centers.unique()) == count
    points = F.normalize(features, dim=1)
    for number in range(count):
        members = (found.cluster == number).nonzero().flatten()
        gaps = (points[members] - points[members].mean(0)).norm(dim=1)
        assert gaps[members == found.centers[number]] == pytest.approx(float(gaps.min()), abs=1e-5)
        centre = points[found.centers[number]]
        torch.testing.assert_close(found.distance[members].float(), (points[members] - centre).norm(dim=1))
    assert found.distance[~inside].isinf().all()
    assert found.distance[found.centers].tolist() == [0] * count


def test_regions_repeat_by_seed_and_ignore_the_length_of_features(features):
    first, again = clusters.cluster_pool(features, 8, 1), clusters.cluster_pool(features * 3, 8, 1)
    assert torch.equal(first.cluster, again.cluster)
    assert torch.equal(first.centers, again.centers)


def test_wide_features_are_reduced_first(features, monkeypatch):
    rotation, _ = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(1)))
    wide = features @ rotation[:10]
    seen = []
    dense = clusters._dense
    monkeypatch.setattr(clusters, "_dense", lambda points: seen.append(points.shape) or dense(points))
    found, plain = clusters.cluster_pool(wide, 8, 1), clusters.cluster_pool(features, 8, 1)
    assert seen == [(160, 64), (160, 10)]
    # the first ten components hold everything, so that the same images are noise
    assert torch.equal(found.cluster >= 0, plain.cluster >= 0)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 30])
def test_a_small_pool_and_one_of_copies_have_regions_too(count):
    found = clusters.cluster_pool(torch.ones(count, 4), 2, 0)
    assert len(found.centers) >= 1 or (found.cluster == -1).all()
    assert torch.equal(found.cluster[found.centers], torch.arange(len(found.centers)))


def by_hand() -> PoolClusters:
    """Three clusters and noise: 0 has places 0 2 4 6, 1 has 1 3, 2 has 5 8; 7 and 9 are noise."""
    cluster = torch.tensor([0, 1, 0, 1, 0, 2, 0, -1, 2, -1])
    distance = torch.tensor([0.3, 0, 0.1, 0.5, 0, 0, 0.2, torch.inf, 0.4, torch.inf])
    return PoolClusters(cluster, torch.tensor([4, 1, 5]), distance)


def test_clusters_with_most_entropy_in_all_are_best():
    entropy = torch.tensor([0.1, 0.9, 0.1, 0.1, 0.1, 0.2, 0.1, 1.0, 0.3, 1.0])
    assert most_uncertain(by_hand(), entropy, 3).tolist() == [1, 2, 0]
    assert most_uncertain(by_hand(), entropy, 2).tolist() == [1, 2]
    assert most_uncertain(by_hand(), torch.full((10,), 0.5), 9).tolist() == [0, 1, 2], "the larger, then the first"


def test_members_share_the_label_of_their_own_centre_from_there_outwards():
    members, lender = propagation_targets(by_hand(), torch.tensor([2, 0]), None)
    assert members.tolist() == [5, 8, 4, 2, 6, 0]
    assert lender.tolist() == [0, 0, 1, 1, 1, 1]
    members, lender = propagation_targets(by_hand(), torch.tensor([2, 0]), 3)
    assert members.tolist() == [5, 8, 4, 2, 6]
    members, lender = propagation_targets(by_hand(), torch.tensor([2, 0]), 1)
    assert (members.tolist(), lender.tolist()) == ([5, 4], [0, 1])


def test_no_cluster_no_member():
    none = PoolClusters(torch.full((3,), -1), torch.empty(0, dtype=torch.long), torch.full((3,), torch.inf))
    assert most_uncertain(none, torch.ones(3), 2).tolist() == []
    assert propagation_targets(none, torch.empty(0, dtype=torch.long), None)[0].tolist() == []


def test_clustering_leaves_the_threads_as_they_were(features):
    threads = torch.get_num_threads()
    clusters.cluster_pool(features, 8, 1)
    assert torch.get_num_threads() == threads
    assert np.isfinite(features.numpy()).all()
