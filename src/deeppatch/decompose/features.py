"""Pooled features: what a network's last layer reads, computed once for each image and kept by content."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes, write_bytes
from deeppatch.data.files import Files
from deeppatch.data.sources import Images
from deeppatch.data.views import clean
from deeppatch.errors import StaleArtifact
from deeppatch.graph.hooks import input_of
from deeppatch.progress import info, track

SHARD = 2**16


@dataclass(frozen=True)
class Features:
    """Pooled features of labelled images: `values` float32 (N, D), `labels` int64 (N,)."""

    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ShuffledFeatures:
    """One epoch of training batches (values, labels); the order depends on `seed` and `epoch` alone."""

    features: Features
    batch_size: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = runtime.generator(self.seed, "features", self.epoch)
        order = torch.randperm(len(self.features), generator=draw).to(self.features.labels.device)
        for index in order.split(self.batch_size):
            yield self.features.values[index], self.features.labels[index]


def pooled(
    model: nn.Module,
    head: str,
    images: Images,
    cache: Path,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "features",
) -> Features:
    """Return what the module `head` of a classifier reads for each image, in eval mode, on the model's device.

    The folder `cache` keeps the result in shards of 65,536 images, each named by a hash of weights, images and
    precision: a shard that is there is read, one that is damaged is computed again.
    """
    device = next(model.parameters()).device
    state = f"{state_digest(model.state_dict())} {head} {device.type} {amp}"
    parts = []
    for start in range(0, len(images), SHARD):
        shard = images.take(torch.arange(start, min(start + SHARD, len(images)), device=images.labels.device))
        key = hashlib.sha256(f"{state} {_digest(shard.pixels)}".encode()).hexdigest()[:32]
        path = cache / f"{key}.safetensors"
        values = _kept(path, len(shard))
        if values is None:
            values = _compute(model, head, shard, batch_size, amp, label)
            tensors = {"features": values}
            write_bytes(path, tensors_to_bytes(tensors, {"digest": state_digest(tensors)}))
        parts.append(values.to(device))
    return Features(parts[0] if len(parts) == 1 else torch.cat(parts), images.labels)


@torch.no_grad()
def _compute(model: nn.Module, head: str, images: Images, batch_size: int, amp: bool, label: str) -> Tensor:
    batches = clean(images, batch_size)
    model.eval()
    values = []
    for pixels, _labels in track(batches, len(batches), label):
        with runtime.autocast(pixels.device, amp):
            values.append(input_of(model, head, pixels).float())
    return torch.cat(values)


def _kept(path: Path, count: int) -> Tensor | None:
    if not path.exists():
        return None
    with contextlib.suppress(StaleArtifact):
        tensors, meta = tensors_from_bytes(path.read_bytes(), path)
        if meta.get("digest") == state_digest(tensors) and len(tensors["features"]) == count:
            return tensors["features"]
    info(f"{path} is damaged; computing it again")
    return None


def _digest(pixels: Tensor | Files) -> str:
    if isinstance(pixels, Files):
        return pixels.digest()
    return hashlib.sha256(pixels.cpu().contiguous().numpy()).hexdigest()  # type: ignore[arg-type]
