"""The pool of images to choose from: part of a labelled data set, or a folder of unlabelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.data import biased_split
from deeppatch.data.biased_split import Partition
from deeppatch.data.dataset import Data
from deeppatch.data.images import Source
from deeppatch.data.scaling import Scaling
from deeppatch.data.unlabelled import read_unlabelled
from deeppatch.errors import DataProblem
from deeppatch.storage import sha256


@dataclass(frozen=True)
class Pool:
    """Images, `pixels` uint8 (N, 3, H, W), and their names.

    `truth` int64 (N,) are the labels of a simulated pool, only for the oracle and for diagnostics. It is None for a
    real pool, whose files are in `folder`. `digest` is a hash of the pool.
    """

    pixels: Tensor
    names: list[str]
    truth: Tensor | None
    folder: Path | None
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> list[list[str]]:
        """The name of each image with a hash of its pixels, by which an image is found again in a pool that changed."""
        pixels = self.pixels.cpu().contiguous()
        hashes = [sha256(image.numpy().tobytes())[:16] for image in pixels]
        return [list(each) for each in zip(self.names, hashes, strict=True)]


def simulated_pool(source: Source, parts: Partition, device: torch.device) -> Pool:
    """Return the pool of a partition on `device`; its images are named by their indices in the combined data set."""
    images = biased_split.combined(source).take(parts.pool).to(device)
    return Pool(images.pixels[:], [str(index) for index in parts.pool.tolist()], images.labels, None, parts.digest)


def folder_pool(
    folder: Path, scaling: Scaling, device: torch.device, *, limit: int | None = None, seed: int = 2021
) -> Pool:
    """Return all images under a folder, scaled to one size; `limit` keeps a random subset of that many."""
    names, pixels = read_unlabelled(folder, scaling)
    if limit is not None:
        drawn = torch.randperm(len(names), generator=runtime.generator(seed, "limited", "pool"))
        kept = drawn[:limit].sort().values
        names, pixels = [names[index] for index in kept.tolist()], pixels[kept]
    digest = sha256("\n".join([state_digest({"pixels": pixels}), *names]).encode())
    return Pool(pixels.to(device), names, None, folder, digest)


def check_pool(pixels: object, data: object) -> None:
    """Raise DataProblem unless a pool is a uint8 tensor (N, 3, H, W) with an image, of the size of those of `data`."""
    if not isinstance(data, Data):
        raise DataProblem(f"the data are {type(data).__name__}; give a Data, and the pixels of the pool in their place")
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        found = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
        raise DataProblem(f"the pool is {found}; give a uint8 tensor (N, 3, H, W)")
    if not len(pixels):
        raise DataProblem("the pool has no images")
    size = data.example.shape[-2:]
    if pixels.shape[2:] != size:
        sizes = f"{tuple(pixels.shape[2:])}, those of the data {tuple(size)}"
        raise DataProblem(f"images of the pool have size {sizes}; resize the pool")
