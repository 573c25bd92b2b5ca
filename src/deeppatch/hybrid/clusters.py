"""Cluster the pool into groups of similar images, propagate labels within clusters, and choose typical images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from deeppatch.hybrid.choice_settings import CLUSTER_SIZE
from deeppatch.hybrid.uncertainty import index_within_group

MIN_CLUSTER = 5
MIN_SAMPLES = 4  # scikit-learn counts the point itself; this is 3 in the package that HybridRepair uses
MAX_DIMENSIONS = 64  # in more dimensions HDBSCAN compares all pairs of points
NEIGHBOURS = 20  # by which TypiClust measures how dense a cluster is around an image
DISTANCES = 2**24  # that are in memory at once


@dataclass(frozen=True)
class PoolClusters:
    """Clusters of the pool: `cluster` int64 (N,), -1 for noise; `centers` (K,): the index of each cluster's centre.

    `distance` (N,): from each image to the centre of its cluster, infinite for noise.
    """

    cluster: Tensor
    centers: Tensor
    distance: Tensor


@dataclass(frozen=True)
class TypicalImages:
    """Images of the pool, (B,), with the cluster of each, and the number of images in that, all int64."""

    indices: Tensor
    cluster: Tensor
    sizes: Tensor


def cluster_pool(features: Tensor, budget: int, seed: int, size: int = CLUSTER_SIZE) -> PoolClusters:
    """Cluster features (N, D) as HybridRepair does: without the noise points of HDBSCAN, by k-means.

    Features are normalised to length 1, and reduced to at most 64 dimensions by PCA. There is one cluster for every
    `size` images, but at least as many as the budget. The centre of a cluster is the member nearest to its mean. This
    runs on the CPU, and all sums on one thread, so that they are reproducible.
    """
    with threadpool_limits(limits=1):
        points = _reduce(F.normalize(features.float(), dim=1).cpu().numpy(), seed)
        dense = np.flatnonzero(_dense(points))
        cluster, squared = _k_means(points[dense], max(len(dense) // size, min(budget, len(dense))), seed)
    order = np.lexsort((squared, cluster))  # by cluster, then from its mean outwards
    _, first = np.unique(cluster[order], return_index=True)
    centers = dense[order[first]]
    everywhere = np.full(len(points), -1)
    everywhere[dense] = cluster
    distance = np.full(len(points), np.inf)
    distance[dense] = np.linalg.norm(points[dense] - points[centers[cluster]], axis=1)
    return PoolClusters(*(torch.from_numpy(values).to(features.device) for values in (everywhere, centers, distance)))


def most_uncertain(pool_clusters: PoolClusters, entropy: Tensor, budget: int) -> Tensor:
    """Return the clusters (at most B) with the largest sums of entropy (N,) over their members, largest first."""
    cluster, entropy = pool_clusters.cluster.cpu(), entropy.double().cpu()  # on the CPU sums are reproducible
    inside = cluster >= 0
    sums = torch.bincount(cluster[inside], entropy[inside], minlength=len(pool_clusters.centers))
    return sums.argsort(descending=True, stable=True)[:budget].to(pool_clusters.cluster.device)


def propagation_targets(pool_clusters: PoolClusters, chosen: Tensor, reach: int | None) -> tuple[Tensor, Tensor]:
    """Return the images that the labels of chosen clusters are propagated to.

    Args:
        pool_clusters: The clusters.
        chosen: The clusters whose centres are labelled, (B,).
        reach: The number of images of a cluster that get its label, the nearest to its centre (default: all).

    Returns:
        The images (M,), and for each the cluster whose label it gets, (M,), as an index in `chosen`.
    """
    source = torch.full_like(pool_clusters.centers, -1)
    source[chosen] = torch.arange(len(chosen), device=chosen.device)
    inside = (pool_clusters.cluster >= 0).nonzero().flatten()
    inside = inside[source[pool_clusters.cluster[inside]] >= 0]
    order = inside[pool_clusters.distance[inside].argsort(stable=True)]
    order = order[source[pool_clusters.cluster[order]].argsort(stable=True)]
    sources = source[pool_clusters.cluster[order]]
    if reach is not None:
        near = index_within_group(sources) < reach
        order, sources = order[near], sources[near]
    return order, sources


def typical_images(features: Tensor, known: Tensor, budget: int, seed: int) -> TypicalImages:
    """Return the most typical image of each of the largest clusters that no known class covers (TypiClust).

    Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML
    2022, section 3: features are clustered by k-means into as many clusters as there are labels, those to buy and those
    that are known; typical is the image with the smallest mean distance to its 20 nearest neighbours in the cluster.
    There, a cluster with a labelled image is covered. The training images here are so many that they would lie in all
    clusters, so each known class stands for one label: it covers the cluster whose mean is nearest to its own. Where
    labels are left, they go to covered clusters, then to the next typical images of each.

    As in `cluster_pool`, features have length 1 and at most 64 dimensions, and this runs on the CPU.

    Args:
        features: Of the pool, (N, D).
        known: The mean features of the classes that the training images have, (C, D).
        budget: The number of images to choose; above N, all are chosen.
        seed: That of k-means.
    """
    with threadpool_limits(limits=1):
        both = torch.cat([features, known.to(features)]).float()
        points, means = np.split(_reduce(F.normalize(both, dim=1).cpu().numpy(), seed), [len(features)])
        cluster, _ = _k_means(points, min(budget + len(known), len(points)), seed)
        sizes = np.bincount(cluster)
        sums = np.zeros((len(sizes), points.shape[1]))
        np.add.at(sums, cluster, points)
        covered = np.isin(
            np.arange(len(sizes)), pairwise_distances_argmin(means, sums / sizes[:, None]) if len(means) else []
        )
    spread = _distance_to_neighbours(torch.from_numpy(points), torch.from_numpy(cluster)).numpy()
    by_cluster = np.lexsort((spread, cluster))
    rank = index_within_group(torch.from_numpy(cluster[by_cluster])).numpy()
    place = np.empty(len(sizes), int)  # of each cluster: the largest of those that are not covered comes first
    place[np.lexsort((-sizes, covered))] = np.arange(len(sizes))
    chosen = by_cluster[np.lexsort((place[cluster[by_cluster]], rank))][:budget]
    found = (chosen, cluster[chosen], sizes[cluster[chosen]])
    return TypicalImages(*(torch.from_numpy(values).to(features.device) for values in found))


def _distance_to_neighbours(points: Tensor, cluster: Tensor) -> Tensor:
    """Return for each of points (N, D) the mean distance to its nearest neighbours in its cluster; 0 where it is alone.

    Of a large cluster only some rows of the distances are in memory at once.
    """
    spread = torch.zeros(len(points))
    for members in cluster.argsort(stable=True).split(cluster.bincount().tolist()):
        own = points[members]
        count = min(NEIGHBOURS, len(members) - 1)
        rows = max(1, DISTANCES // len(members))
        for start in range(0, len(members) if count else 0, rows):
            distances = torch.cdist(own[start : start + rows], own)
            within = torch.arange(len(distances))
            distances[within, start + within] = torch.inf
            near = distances.topk(count, dim=1, largest=False).values
            spread[members[start : start + rows]] = near.mean(1)
    return spread


def _reduce(points: np.ndarray, seed: int) -> np.ndarray:
    width = min(MAX_DIMENSIONS, *points.shape)
    if points.shape[1] <= MAX_DIMENSIONS:
        return points
    return PCA(width, svd_solver="covariance_eigh", random_state=seed).fit_transform(points)


def _dense(points: np.ndarray) -> np.ndarray:
    if len(points) < MIN_CLUSTER:
        return np.ones(len(points), bool)
    # most of the time goes into neighbours; threads share the images, so that results do not depend on their number
    threads = torch.get_num_threads()
    density = HDBSCAN(min_cluster_size=MIN_CLUSTER, min_samples=MIN_SAMPLES, n_jobs=threads, copy=True)
    return density.fit_predict(points) >= 0


def _k_means(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster (n,) of each point, with consecutive indices, and its squared distance to the mean (n,)."""
    if not len(points):
        return np.empty(0, int), np.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # identical points leave clusters empty
        means = KMeans(count, n_init=1, random_state=seed).fit(points)
    _, cluster = np.unique(means.labels_, return_inverse=True)
    return cluster, np.square(points - means.cluster_centers_[means.labels_]).sum(1)
