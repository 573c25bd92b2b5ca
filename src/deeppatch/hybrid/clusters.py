"""Regions of the pool: clusters of similar images where these lie densely, and who shares a label."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from deeppatch.hybrid.uncertainty import index_within_group

MIN_CLUSTER = 5
MIN_SAMPLES = 4  # scikit-learn counts the point itself: 3 of the package that HybridRepair used
MAX_DIMENSIONS = 64  # density search slows down to comparing all pairs in more dimensions
IMAGES_PER_CLUSTER = 10


@dataclass(frozen=True)
class PoolClusters:
    """Clusters of the pool: `cluster` int64 (N,), -1 for noise; `centers` (K,): the index of each cluster's centre.

    `distance` (N,): from each image to the centre of its cluster, infinite for noise.
    """

    cluster: Tensor
    centers: Tensor
    distance: Tensor


def cluster_pool(features: Tensor, budget: int, seed: int) -> PoolClusters:
    """Cluster features (N, D): what HDBSCAN calls noise is left out, k-means divides the rest (HybridRepair).

    Features are normalised to length 1, and reduced to 64 dimensions (PCA) where they have more. There are as many
    clusters as make 10 images each on average, but no fewer than the budget. A centre is the member nearest to the
    mean. Runs on the CPU, on one thread, because sums in another order are other sums.
    """
    with threadpool_limits(limits=1):
        points = _reduce(F.normalize(features.float(), dim=1).cpu().numpy(), seed)
        dense = np.flatnonzero(_dense(points))
        cluster, squared = _k_means(points[dense], max(len(dense) // IMAGES_PER_CLUSTER, min(budget, len(dense))), seed)
    order = np.lexsort((squared, cluster))  # by cluster, then from its mean outwards
    _, first = np.unique(cluster[order], return_index=True)
    centers = dense[order[first]]
    everywhere = np.full(len(points), -1)
    everywhere[dense] = cluster
    distance = np.full(len(points), np.inf)
    distance[dense] = np.linalg.norm(points[dense] - points[centers[cluster]], axis=1)
    return PoolClusters(*(torch.from_numpy(each).to(features.device) for each in (everywhere, centers, distance)))


def most_uncertain(found: PoolClusters, entropy: Tensor, budget: int) -> Tensor:
    """Return the clusters (at most B) with the largest sums of entropy (N,) over their members, largest first."""
    cluster, entropy = found.cluster.cpu(), entropy.double().cpu()  # where sums repeat to the last bit
    inside = cluster >= 0
    sums = torch.bincount(cluster[inside], entropy[inside], minlength=len(found.centers))
    return sums.argsort(descending=True, stable=True)[:budget].to(found.cluster.device)


def propagation_targets(found: PoolClusters, chosen: Tensor, reach: int | None) -> tuple[Tensor, Tensor]:
    """Return the members (M,) that share the labels of chosen clusters (B,), and whose each shares (M,), an index in B.

    `reach` is how many of a cluster share its label, its centre among them, from there outwards; None for all.
    """
    lender = torch.full_like(found.centers, -1)
    lender[chosen] = torch.arange(len(chosen), device=chosen.device)
    inside = (found.cluster >= 0).nonzero().flatten()
    inside = inside[lender[found.cluster[inside]] >= 0]
    order = inside[found.distance[inside].argsort(stable=True)]
    order = order[lender[found.cluster[order]].argsort(stable=True)]
    whose = lender[found.cluster[order]]
    if reach is not None:
        near = index_within_group(whose) < reach
        order, whose = order[near], whose[near]
    return order, whose


def _reduce(points: np.ndarray, seed: int) -> np.ndarray:
    width = min(MAX_DIMENSIONS, *points.shape)
    if points.shape[1] <= MAX_DIMENSIONS:
        return points
    return PCA(width, svd_solver="covariance_eigh", random_state=seed).fit_transform(points)


def _dense(points: np.ndarray) -> np.ndarray:
    if len(points) < MIN_CLUSTER:
        return np.ones(len(points), bool)
    return HDBSCAN(min_cluster_size=MIN_CLUSTER, min_samples=MIN_SAMPLES, copy=True).fit_predict(points) >= 0


def _k_means(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster (n,) of each point, numbered without gaps, and its squared distance to the mean (n,)."""
    if not len(points):
        return np.empty(0, int), np.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # copies of a point leave clusters empty
        means = KMeans(count, n_init=1, random_state=seed).fit(points)
    _, cluster = np.unique(means.labels_, return_inverse=True)
    return cluster, np.square(points - means.cluster_centers_[means.labels_]).sum(1)
