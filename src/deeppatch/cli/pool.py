"""The pool: images that labels are bought for, cut from a labelled data set, or a user's own that have none yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.artifacts import sha256, state_digest
from deeppatch.cli.biased import SPLIT, partition_digest
from deeppatch.cli.context import Context
from deeppatch.data import biased_split
from deeppatch.data.sources import SIZE
from deeppatch.data.unlabelled import unlabelled
from deeppatch.errors import StaleArtifact
from deeppatch.progress import info
from deeppatch.runtime import generator


@dataclass(frozen=True)
class Pool:
    """Images on the device, `pixels` uint8 (N, 3, H, W), and what they are called.

    `truth` int64 (N,) are the labels of a simulated pool, for the oracle and the evaluator alone; None in the field,
    where `folder` holds the files. `digest` tells one pool from another.
    """

    pixels: Tensor
    names: list[str]
    truth: Tensor | None
    folder: Path | None
    digest: str

    def __len__(self) -> int:
        return len(self.names)


def pool_of(context: Context) -> Pool:
    """Return the pool of --bias, or the images under PATH/pool of -d folder:PATH; --limit keeps a random subset."""
    options = context.options
    if options.bias:
        parts = biased_split.partition(context.source, options.bias, options.seed, options.limit)
        check_partition(context, parts)
        images = biased_split.mixed(context.source).take(parts.pool).to(context.device)
        info(f"pool: {len(images)} images, bias {options.bias}, cut in {parts.order}; an oracle has their labels")
        names = [str(place) for place in parts.pool.tolist()]
        return Pool(images.pixels[:], names, images.labels, None, partition_digest(parts))
    folder = Path(options.dataset.removeprefix("folder:")) / "pool"
    names, pixels = unlabelled(folder, SIZE)
    if options.limit is not None:
        drawn = torch.randperm(len(names), generator=generator(options.seed, "limited", "pool"))
        kept = drawn[: options.limit].sort().values
        names, pixels = [names[place] for place in kept.tolist()], pixels[kept]
    info(f"pool: {len(names)} images without labels in {folder}")
    digest = sha256("\n".join([state_digest({"pixels": pixels}), *names]).encode())
    return Pool(pixels.to(context.device), names, None, folder, digest)


def check_partition(context: Context, parts: biased_split.Partition) -> None:
    """Raise StaleArtifact where the model was trained on another cut of the data set: it may have seen the pool."""
    given = context.options.weights
    path = (given.parent if given else context.folder("pretrain")) / SPLIT
    command = context.command("pretrain")
    if given and not path.exists():
        info(f"no {SPLIT} beside {given}: nothing shows that it has not seen the pool")
        return
    content = path.read_bytes() if given else context.stage.read(path, command)
    if given:
        context.stage.inherit(path, content)
    if partition_digest(biased_split.partition_from_bytes(content, path)) != partition_digest(parts):
        raise StaleArtifact(f"{path} cuts {context.source.name} otherwise; make it again with: {command}")
