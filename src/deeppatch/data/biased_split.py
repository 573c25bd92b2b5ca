"""HybridRepair's data: a combined data set, split by position, with class-biased samples for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.data.files import StoredPixels
from deeppatch.data.given_split import GivenSplit
from deeppatch.data.sources import Images, Source
from deeppatch.errors import DataProblem, StaleArtifact

BIASES = ("A", "B", "C")
# the sampling weight of each class, by the number of classes: as published, for GTSRB to three decimals
WEIGHTS: dict[int, dict[str, tuple[float, ...]]] = {
    10: {
        "B": (
            0.77132064, 0.02075195, 0.63364823, 0.74880388, 0.49850701, 0.22479665, 0.19806286, 0.76053071, 0.16911084,
            0.08833981,
        ),
        "C": (
            0.68535982, 0.95339335, 0.00394827, 0.51219226, 0.81262096, 0.61252607, 0.72175532, 0.29187607, 0.91777412,
            0.71457578,
        ),
    },
    43: {
        "B": (
            0.772, 0.482, 0.304, 0.911, 0.269, 0.289, 0.351, 0.970, 0.868, 0.981, 0.450, 0.945, 0.231, 0.554, 0.541,
            0.295, 0.927, 0.527, 0.431, 0.992, 0.284, 0.093, 0.213, 0.548, 0.602, 0.700, 0.832, 0.862, 0.201, 0.131,
            0.177, 0.930, 0.049, 0.794, 0.825, 0.311, 0.996, 0.793, 0.203, 0.612, 0.390, 0.437, 0.531,
        ),
        "C": (
            0.512, 0.040, 0.560, 0.230, 0.147, 0.236, 0.916, 0.697, 0.285, 0.693, 0.168, 0.803, 0.383, 0.755, 0.129,
            0.055, 0.433, 0.228, 0.542, 0.164, 0.082, 0.147, 0.360, 0.817, 0.342, 0.517, 0.040, 0.376, 0.876, 0.842,
            0.997, 0.148, 0.177, 0.623, 0.465, 0.934, 0.282, 0.877, 0.466, 0.166, 0.925, 0.395, 0.329,
        ),
    },
}  # fmt: skip
# images in the train and val slices and in test; other data sets are split in the proportions of CIFAR-10
SIZES = {
    "cifar10": (15_000, 5_000, 5_000),
    "svhn": (5_000, 5_000, 10_000),
    "gtsrb": (2_500, 2_500, 5_000),
    "stl10": (2_000, 1_000, 4_000),
}
SHARES = tuple(size / 60_000 for size in SIZES["cifar10"])
# the shares of the two slices that are sampled
DRAWN_SHARES = {"gtsrb": (0.90, 0.75), "stl10": (0.90, 0.75)}
DEFAULT_DRAWN_SHARES = (0.75, 0.75)


@dataclass(frozen=True)
class Partition:
    """Indices in the combined data set (train part, then test part), int64; train and val are biased, the others not.

    `order` is the order that was split: `library order`, or a `seeded permutation` of each part.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    pool: Tensor
    order: str

    @property
    def digest(self) -> str:
        """A hash of the four lists."""
        return state_digest(self._lists())

    def _lists(self) -> dict[str, Tensor]:
        return {"train": self.train, "val": self.val, "test": self.test, "pool": self.pool}

    def to_bytes(self, **facts: Any) -> bytes:
        """Serialise the four lists, with `facts` and the order as metadata."""
        return tensors_to_bytes(self._lists(), {"order": self.order, **facts})


def partition_from_bytes(content: bytes, origin: Path) -> Partition:
    """Return the partition that `Partition.to_bytes` has serialised; StaleArtifact when it is damaged."""
    lists, meta = tensors_from_bytes(content, origin)
    listed = lists.keys() == {"train", "val", "test", "pool"}
    if not listed or "order" not in meta or any(each.dtype != torch.int64 or each.ndim != 1 for each in lists.values()):
        raise StaleArtifact(f"{origin} is not a split; make it again with pretrain --bias")
    return Partition(**lists, order=meta["order"])


def combined(source: Source) -> Images:
    """Return the train part followed by the test part of a data set."""
    pixels = [part.pixels for part in (source.train, source.test)]
    if any(isinstance(part, StoredPixels) for part in pixels):
        raise DataProblem(f"bias: {source.name} does not fit in memory; choose another data set")
    return Images(torch.cat(pixels), torch.cat([source.train.labels, source.test.labels]))  # type: ignore[arg-type]


def partition(
    source: Source, bias: str, seed: int, limit: int | None = None, given: GivenSplit | None = None
) -> Partition:
    """Split the combined data set, and sample train and val from their slices with a class bias (HybridRepair).

    CIFAR-10, SVHN and STL-10 are split in the library's order; other data sets, and those sorted by class, after a
    seeded permutation of each part. `limit` keeps a random subset of that many images of each of the four parts, so
    that no label of the pool is used. Where a split is `given`, it says which images of the slices are train and val.
    """
    labels = torch.cat([source.train.labels, source.test.labels]).cpu()
    in_order = source.name in ("cifar10", "svhn", "stl10") and not _is_sorted(source.train.labels)
    order = torch.arange(len(labels)) if in_order else _permuted(len(source.train), len(source.test), seed)
    train, val, test, pool = order.tensor_split(_cuts(source.name, len(labels)))
    shares = DRAWN_SHARES.get(source.name, DEFAULT_DRAWN_SHARES)
    weights = class_weights(bias, len(source.classes))[labels]
    slices = {"train": (train, shares[0]), "val": (val, shares[1])}
    parts = {
        **{
            name: given.choose(name, images) if given else _weighted_sample(images, weights, share, seed, name)
            for name, (images, share) in slices.items()
        },
        "test": test,
        "pool": pool,
    }
    if limit is not None:
        parts = {name: _subset(part, limit, seed, name) for name, part in parts.items()}
    return Partition(**parts, order="library order" if in_order else "seeded permutation")


def class_weights(bias: str, classes: int) -> Tensor:
    """Return the sampling weight of each class, float64 (classes,): equal for A, fixed random numbers for B and C.

    For 10 and for 43 classes they are the published ones.
    """
    if bias == "A":
        return torch.ones(classes, dtype=torch.float64)
    if classes in WEIGHTS:
        return torch.tensor(WEIGHTS[classes][bias], dtype=torch.float64)
    generator = runtime.generator(0, "class weights", bias, classes)
    return torch.rand(classes, generator=generator, dtype=torch.float64).clamp_(min=0.001)


def _cuts(name: str, total: int) -> list[int]:
    """Return the ends of the slices for train, val and test; the pool is the rest."""
    sizes = SIZES.get(name, tuple(int(share * total) for share in SHARES))
    if min(sizes) < 1 or sum(sizes) >= total:
        raise DataProblem(f"bias: {name} has {total} images; {sum(sizes)} of them and a pool are needed")
    return torch.tensor(sizes).cumsum(0).tolist()


def _is_sorted(labels: Tensor) -> bool:
    return bool((labels.diff() >= 0).all())


def _permuted(train: int, test: int, seed: int) -> Tensor:
    generator = runtime.generator(seed, "mixed order")
    return torch.cat([torch.randperm(train, generator=generator), train + torch.randperm(test, generator=generator)])


def _weighted_sample(indices: Tensor, weights: Tensor, share: float, seed: int, name: str) -> Tensor:
    """Sample a share of the indices by weight, without replacement, and return them in ascending order."""
    count = int(share * len(indices))
    generator = runtime.generator(seed, "biased", name)
    chosen = torch.multinomial(weights[indices], count, replacement=False, generator=generator)
    return indices[chosen].sort().values


def _subset(indices: Tensor, count: int, seed: int, name: str) -> Tensor:
    if count >= len(indices):
        return indices
    drawn = torch.randperm(len(indices), generator=runtime.generator(seed, "limited", name))
    return indices[drawn[:count].sort().values]
