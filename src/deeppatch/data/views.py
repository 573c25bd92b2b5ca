"""The views of a split that stages read: clean, random, replace, expand and append, as streams of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images, to_float
from deeppatch.distributed.ranks import shard_slice

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class View:
    """A fixed sequence of (image, level) pairs of one split, read in order as (pixels in [0, 1], labels) batches.

    `index` and `levels` are int64 tensors (M,): which image, and at which level (0 is clean; without a corruption
    all are). `part` (which, of how many) says which part of every batch is read. What a corruption draws depends on
    `purpose` and on the index of the batch.
    """

    images: Images
    corruption: Corruption | None
    index: Tensor
    levels: Tensor
    batch_size: int
    part: tuple[int, int] = (0, 1)
    purpose: str = "levels"

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """How many images each whole batch has."""
        return batch_sizes(len(self.index), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = zip(self.index.split(self.batch_size), self.levels.split(self.batch_size), strict=True)
        for batch, (index, levels) in enumerate(batches):
            read, kept = read_and_kept(len(index), self.part, self.corruption)
            pixels = to_float(self.images.pixels[index[read]])
            pixels = degraded(pixels, self.corruption, levels[read], 0, self.purpose, batch)
            yield pixels[kept], self.images.labels[index[read]][kept]

    def shard(self, which: int, of: int) -> View:
        """Return the same view, of every batch part `which` (from 0) of `of`."""
        return replace(self, part=(which, of))

    @property
    def labels(self) -> Tensor:
        """Labels (M,) in the order of the view."""
        return self.images.labels[self.index]


def read_and_kept(size: int, part: tuple[int, int], corruption: Corruption | None) -> tuple[slice, slice]:
    """Return which images of a batch of `size` are read for a part of it, and which of those it keeps.

    A corruption that draws degrades the batch whole, so that its draws do not depend on how many processes share it.
    """
    own = shard_slice(size, *part)
    if corruption is not None and corruption.draws:
        return slice(0, size), own
    return own, slice(None)


def degraded(pixels: Tensor, corruption: Corruption | None, levels: Tensor, seed: int, *purpose: str | int) -> Tensor:
    """Degrade float pixels (N, 3, H, W) at `levels` (N,); what a corruption draws depends on seed and purpose."""
    if corruption is None:
        return pixels
    if corruption.draws:
        return corruption(pixels, levels, runtime.generator(seed, "corrupt", *purpose))
    return corruption(pixels, levels)


def levels_view(images: Images, corruption: Corruption | None, levels: list[int], batch_size: int) -> View:
    """Return every image at each level, one level after the other (expand: 1..6; append: 0..6; replace: one level)."""
    device = images.labels.device
    index = torch.arange(len(images), device=device).repeat(len(levels))
    each = torch.tensor(levels, device=device).repeat_interleave(len(images))
    return View(images, corruption, index, each, batch_size)


def expand(images: Images, corruption: Corruption, batch_size: int) -> View:
    """Return the degraded copies of every image at each level: 6n images."""
    return levels_view(images, corruption, list(range(1, len(corruption) + 1)), batch_size)


def append(images: Images, corruption: Corruption, batch_size: int) -> View:
    """Return every image clean, then at each level: 7n images."""
    return levels_view(images, corruption, list(range(len(corruption) + 1)), batch_size)


def clean(images: Images, batch_size: int) -> View:
    """Return every image once, clean."""
    return levels_view(images, None, [0], batch_size)


def random_level_view(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, each at one level drawn uniformly: one fixed draw by seed."""
    levels = torch.randint(1, len(corruption) + 1, (len(images),), generator=runtime.generator(seed, "degraded-draw"))
    return View(
        images,
        corruption,
        torch.arange(len(images), device=images.labels.device),
        levels.to(images.labels.device),
        batch_size,
        purpose="degraded draw",
    )


def ordered(view: View, order: Tensor) -> View:
    """Return the same images at the same levels, in the order of their indices (M,) in `view`."""
    return replace(view, index=view.index[order], levels=view.levels[order])


def mixed_stream(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, shuffled, with probability 1/2 degraded at a level drawn uniformly."""
    generator = runtime.generator(seed, "mixed-stream")
    order = torch.randperm(len(images), generator=generator)
    levels = random_levels(len(images), len(corruption), generator)
    return View(
        images,
        corruption,
        order.to(images.labels.device),
        levels.to(images.labels.device),
        batch_size,
        purpose="mixed stream",
    )


def random_levels(count: int, kinds: int, generator: torch.Generator) -> Tensor:
    """Draw levels (count,): 0 with probability 1/2, else uniform over 1..kinds."""
    degraded = torch.rand(count, generator=generator) < 0.5
    return torch.where(degraded, torch.randint(1, kinds + 1, (count,), generator=generator), 0)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return how many of `count` images each batch has: all are full but for the last."""
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]


@dataclass(frozen=True)
class Shuffled:
    """One epoch of training batches: shuffled, optionally cropped (and flipped), then degraded at drawn levels.

    The draws depend on `seed` and `epoch` only, so an epoch can be read again after an interruption. Without `mirror`
    no cropped image is flipped. `part` (which, of how many) says which part of every batch is read; what is drawn does
    not depend on it.
    """

    images: Images
    batch_size: int
    seed: int
    epoch: int
    corruption: Corruption | None = None
    augment: bool = False
    mirror: bool = True
    part: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """How many images each whole batch has."""
        return batch_sizes(len(self.images), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # moved to the device once: a copy for each batch would wait for the step before it
        order, levels, crops = (drawn.to(self.images.labels.device) for drawn in self._draw())
        start = 0
        for size in self.sizes:
            read, kept = read_and_kept(size, self.part, self.corruption)
            read = slice(start + read.start, start + read.stop)
            pixels = to_float(self.images.pixels[order[read]])
            if self.augment:
                pixels = crop_and_flip(pixels, crops[:, read])
            pixels = degraded(pixels, self.corruption, levels[read], self.seed, "epoch", self.epoch, start)
            yield pixels[kept], self.images.labels[order[read]][kept]
            start += size

    def shard(self, which: int, of: int) -> Shuffled:
        """Return the same epoch, of every batch part `which` (from 0) of `of`."""
        return replace(self, part=(which, of))

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the whole epoch: order (n,), levels (n,) and crops (3, n)."""
        generator = runtime.generator(self.seed, "epoch", self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        kinds = 0 if self.corruption is None else len(self.corruption)
        levels, crops = [], []
        for size in self.sizes:
            if self.augment:
                crops.append(random_crops(size, self.images.pixels.shape[-2], generator, mirror=self.mirror))
            levels.append(random_levels(size, kinds, generator) if kinds else torch.zeros(size, dtype=torch.long))
        return order, torch.cat(levels), torch.cat(crops, 1) if crops else torch.zeros(3, 0, dtype=torch.long)


def augmented(images: Images, seed: int, *, mirror: bool = True) -> Images:
    """Return every image cropped and perhaps mirrored once, as training draws it: one fixed draw by seed."""
    generator = runtime.generator(seed, "augmented")
    pixels = [
        crop_and_flip(images.pixels[part], random_crops(len(part), images.pixels.shape[-2], generator, mirror=mirror))
        for part in torch.arange(len(images)).split(4096)
    ]
    return Images(torch.cat(pixels), images.labels)


def random_crops(count: int, height: int, generator: torch.Generator, *, mirror: bool = True) -> Tensor:
    """Draw where `count` images are cropped, int64 (3, count): rows from the top, columns from the left, mirrored.

    Without `mirror` no image is mirrored; the crops are the same.
    """
    places = 2 * (height // 8) + 1
    top, left = (torch.randint(0, places, (count, 1), generator=generator) for _ in range(2))
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    return torch.cat([top, left, (mirrored & mirror).long()], 1).T


def crop_and_flip(pixels: Tensor, crops: Tensor) -> Tensor:
    """Crop each image of (N, C, H, W) at its place of its zero-padded self, and mirror it where `crops` says so.

    The padding is an eighth of the height on either side: 4 pixels for CIFAR, as the field has it. `crops` is what
    `random_crops` draws: every place as likely, every second image mirrored.
    """
    count, _, height, width = pixels.shape
    padding, device = height // 8, pixels.device
    top, left, mirrored = crops.to(device).unsqueeze(2)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    columns = torch.where(mirrored.bool(), columns.flip(1), columns)
    padded = F.pad(pixels, (padding,) * 4).permute(0, 2, 3, 1)
    image = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[image, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
