from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
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


def test_clusters_do_not_depend_on_the_number_of_threads(features, monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(clusters.cluster_pool(features, 8, 1))
    assert torch.equal(found[0].cluster, found[1].cluster)
    assert torch.equal(found[0].distance, found[1].distance)


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


def typical_one_by_one(points: Tensor, means: Tensor, cluster: list[int], budget: int) -> list[int]:
    """TypiClust given the clusters, with every distance at hand."""
    members = {each: [index for index, own in enumerate(cluster) if own == each] for each in set(cluster)}
    centres = {each: points[own].mean(0) for each, own in members.items()}
    covered = {min(centres, key=lambda each: float((centres[each] - mean).norm())) for mean in means}

    def spread(index: int) -> float:
        others = sorted(float((points[index] - points[each]).norm()) for each in members[cluster[index]])
        near = others[1 : clusters.NEIGHBOURS + 1]  # without itself
        return sum(near) / len(near) if near else 0.0

    order = sorted(members, key=lambda each: (each in covered, -len(members[each]), each))
    ranked = {each: sorted(own, key=spread) for each, own in members.items()}
    rounds = [[ranked[each][turn] for each in order if turn < len(ranked[each])] for turn in range(len(points))]
    return sum(rounds, [])[:budget]


@pytest.mark.parametrize("budget", [1, 7, 30, 160, 200])
@pytest.mark.parametrize("rows", [2**24, 50])
def test_typiclust_is_its_description(features, budget, rows, monkeypatch):
    monkeypatch.setattr(clusters, "DISTANCES", rows)
    known = F.normalize(features[[0, 25, 45]], dim=1)
    found = clusters.typical_images(features, known, budget, 4)
    count = min(budget + 3, 160)
    points = F.normalize(features, dim=1)
    own = KMeans(count, n_init=1, random_state=4).fit(points.numpy()).labels_.tolist()
    expected = typical_one_by_one(points.double(), known.double(), own, budget)
    assert found.indices.tolist() == expected
    assert found.sizes.tolist() == [own.count(own[index]) for index in expected]
    assert len(found.indices.unique()) == min(budget, 160)


def test_typiclust_takes_the_largest_group_that_no_class_is_known_of():
    draw = torch.Generator().manual_seed(5)
    sizes, known = (30, 25, 20, 15, 5), (1, 3)
    groups = [3 * torch.eye(5)[place] + 0.1 * torch.randn(size, 5, generator=draw) for place, size in enumerate(sizes)]
    found = clusters.typical_images(torch.cat(groups), torch.eye(5)[list(known)], 3, 1)
    assert found.sizes.tolist() == [30, 20, 5]
    first = torch.cat(groups)[found.indices[0]]
    lengths = (F.normalize(groups[0], dim=1) - F.normalize(groups[0], dim=1).mean(0)).norm(dim=1)
    assert (F.normalize(first, dim=0) - F.normalize(groups[0], dim=1).mean(0)).norm() < lengths.median()


def test_typiclust_without_a_known_class_and_among_copies_buys_no_image_twice():
    copies = torch.ones(6, 3)
    found = clusters.typical_images(copies, torch.empty(0, 3), 4, 1)
    assert len(found.indices.unique()) == 4
    assert found.sizes.tolist() == [6] * 4


def test_typiclust_reduces_pool_and_classes_alike(features):
    rotation, _ = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(1)))
    known = F.normalize(features[[0, 25]], dim=1)
    wide = clusters.typical_images(features @ rotation[:10], known @ rotation[:10], 4, 1)
    plain = clusters.typical_images(features, known, 4, 1)
    assert torch.equal(wide.sizes, plain.sizes)
