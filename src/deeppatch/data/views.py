"""Views of images as streams of batches: clean, at each level, at random levels, and shuffled for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.corruptions import Corruption, depends_on_batch, families, looks_up, own_images
from deeppatch.data.files import Joined, StoredPixels
from deeppatch.data.images import Images, to_float
from deeppatch.distributed.ranks import shard_slice

Batch = tuple[Tensor, Tensor]
MANY = 10  # more levels are not all read for each image: of each image one degraded version is


@dataclass(frozen=True)
class View:
    """A fixed sequence of (image, level) pairs of one split, read in order as (pixels in [0, 1], labels) batches.

    Args:
        images: The images.
        corruption: The corruption; without one all images are clean.
        index: The index of the image, int64 (M,).
        levels: The level of the image, int64 (M,); 0 is clean.
        batch_size: The number of images in a batch.
        part: Index and number of shards of each batch; only this shard is read.
        purpose: The random numbers of the corruption depend on this and, for callables, on the index of the batch.
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
        """The number of images in each whole batch."""
        return batch_sizes(len(self.index), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = zip(self.index.split(self.batch_size), self.levels.split(self.batch_size), strict=True)
        for batch, (index, levels) in enumerate(batches):
            read, kept = read_and_kept(len(index), self.part, self.corruption)
            pixels = to_float(self.images.pixels[index[read]])
            pixels = degraded(pixels, self.corruption, levels[read], 0, self.purpose, batch)
            yield pixels[kept], self.images.labels[index[read]][kept]

    def shard(self, index: int, count: int) -> View:
        """Return the view of shard `index` (from 0) of `count` shards of each batch."""
        return replace(self, part=(index, count))

    @property
    def labels(self) -> Tensor:
        """Labels (M,) in the order of the view."""
        return self.images.labels[self.index]


def read_and_kept(size: int, part: tuple[int, int], corruption: Corruption | None) -> tuple[slice, slice]:
    """Return which images of a batch of `size` are read for a shard of it, and which of those are kept.

    A callable degrades the whole batch, so that the result does not depend on the number of processes.
    """
    own = shard_slice(size, *part)
    if depends_on_batch(corruption):
        return slice(0, size), own
    return own, slice(None)


def degraded(pixels: Tensor, corruption: Corruption | None, levels: Tensor, seed: int, *purpose: str | int) -> Tensor:
    """Degrade float pixels (N, 3, H, W) at `levels` (N,); random numbers depend on seed and purpose.

    The last part of the purpose is the batch, which is left out where a result depends on the image alone.
    """
    if corruption is None:
        return pixels
    if corruption.draws:
        purpose = purpose if depends_on_batch(corruption) else purpose[:-1]
        return corruption(pixels, levels, runtime.generator(seed, "corrupt", *purpose))
    return corruption(pixels, levels)


def levels_view(images: Images, corruption: Corruption | None, levels: list[int], batch_size: int) -> View:
    """Return every image at each level, one level after the other (expand: 1..6; append: 0..6; replace: one level).

    Of a level that has images of its own, all of these are read.
    """
    device = images.labels.device
    if any(own := [own_images(corruption, level, images) for level in levels]):
        return _levels_of_own_images(images, corruption, levels, own, batch_size)
    index = torch.arange(len(images), device=device).repeat(len(levels))
    level_of_each = torch.tensor(levels, device=device).repeat_interleave(len(images))
    return View(images, corruption, index, level_of_each, batch_size)


def _levels_of_own_images(
    images: Images, corruption: Corruption | None, levels: list[int], own: list[Images | None], batch_size: int
) -> View:
    """Return the levels as a view of clean images and those of the levels, joined."""
    parts, index = [images], []
    for found in own:
        first = sum(map(len, parts)) if found else 0
        index.append(first + torch.arange(len(found or images), device=images.labels.device))
        parts += [found] if found else []
    level_of_each = [torch.full_like(part, level) for part, level in zip(index, levels, strict=True)]
    pixels: Tensor | StoredPixels = Joined([part.pixels for part in parts])
    if not any(isinstance(part.pixels, StoredPixels) for part in parts):
        pixels = torch.cat([part.pixels[:] for part in parts])
    joined = Images(pixels, torch.cat([part.labels for part in parts]))
    return View(joined, corruption, torch.cat(index), torch.cat(level_of_each), batch_size)


def expand(images: Images, corruption: Corruption, batch_size: int) -> View:
    """Return the degraded copies of every image at each level: 6n images; one for each image where levels are many."""
    if len(corruption) > MANY:
        return random_level_view(images, corruption, batch_size, 0)
    return levels_view(images, corruption, list(range(1, len(corruption) + 1)), batch_size)


def append(images: Images, corruption: Corruption, batch_size: int) -> View:
    """Return every image clean, then at each level: 7n images; at one level, 2n images, where levels are many."""
    if len(corruption) > MANY:
        once = random_level_view(images, corruption, batch_size, 0)
        return replace(once, index=once.index.repeat(2), levels=torch.cat([0 * once.levels, once.levels]))
    return levels_view(images, corruption, list(range(len(corruption) + 1)), batch_size)


def clean(images: Images, batch_size: int) -> View:
    """Return every image once, clean."""
    return levels_view(images, None, [0], batch_size)


def random_level_view(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, at a level that is drawn by seed: its type uniformly, then the level of the type."""
    levels = degraded_levels(len(images), families(corruption), runtime.generator(seed, "degraded-draw"))
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
    """Return every image once, shuffled, and degraded with probability 1/2, at a level that is drawn uniformly."""
    generator = runtime.generator(seed, "mixed-stream")
    order = torch.randperm(len(images), generator=generator)
    levels = random_levels(len(images), families(corruption), generator)
    return View(
        images,
        corruption,
        order.to(images.labels.device),
        levels.to(images.labels.device),
        batch_size,
        purpose="mixed stream",
    )


def random_levels(count: int, types: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw levels (count,): 0 with probability 1/2, else one of those that `degraded_levels` draws."""
    degraded = torch.rand(count, generator=generator) < 0.5
    return torch.where(degraded, degraded_levels(count, types, generator), 0)


def degraded_levels(count: int, types: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw levels (count,) from 1 on: a type uniformly, then one of its levels; `types` are their numbers of levels.

    Where all types have equally many levels, as where there is one, all levels are equally likely.
    """
    sizes = (types,) if isinstance(types, int) else types
    if len(set(sizes)) == 1:
        return torch.randint(1, sum(sizes) + 1, (count,), generator=generator)
    chosen = torch.randint(len(sizes), (count,), generator=generator)
    size = torch.tensor(sizes)
    first = size.cumsum(0) - size
    within = (torch.rand(count, generator=generator, dtype=torch.float64) * size[chosen]).long()
    return 1 + first[chosen] + within


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of `count` images: all are full except the last."""
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]


@dataclass(frozen=True)
class Shuffled:
    """One epoch of training batches: shuffled, optionally cropped and mirrored, then degraded at random levels.

    Where degraded versions are looked up, images are cropped and mirrored afterwards. Without `mirror` they are only
    cropped. Random numbers depend only on `seed` and `epoch`, so an epoch can be read again after an interruption; they
    do not depend on `part`: index and number of shards of each batch, of which only this one is read.
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
        """The number of images in each whole batch."""
        return batch_sizes(len(self.images), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # moved to the device once, because a copy for each batch would wait for the previous step
        order, levels, crops = (drawn.to(self.images.labels.device) for drawn in self.draw())
        start = 0
        for size in self.sizes:
            read, kept = read_and_kept(size, self.part, self.corruption)
            read = slice(start + read.start, start + read.stop)
            pixels = to_float(self.images.pixels[order[read]])
            first = looks_up(self.corruption)  # which needs whole images
            if self.augment and not first:
                pixels = crop_and_flip(pixels, crops[:, read])
            pixels = degraded(pixels, self.corruption, levels[read], self.seed, "epoch", self.epoch, start)
            if self.augment and first:
                pixels = crop_and_flip(pixels, crops[:, read])
            yield pixels[kept], self.images.labels[order[read]][kept]
            start += size

    def shard(self, index: int, count: int) -> Shuffled:
        """Return the epoch of shard `index` (from 0) of `count` shards of each batch."""
        return replace(self, part=(index, count))

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the whole epoch: order (n,), levels (n,) and crops (3, n)."""
        generator = runtime.generator(self.seed, "epoch", self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        types = () if self.corruption is None else families(self.corruption)
        levels, crops = [], []
        for size in self.sizes:
            if self.augment:
                crops.append(random_crops(size, self.images.pixels.shape[-2], generator, mirror=self.mirror))
            levels.append(random_levels(size, types, generator) if types else torch.zeros(size, dtype=torch.long))
        return order, torch.cat(levels), torch.cat(crops, 1) if crops else torch.zeros(3, 0, dtype=torch.long)


def augmented(images: Images, seed: int, *, mirror: bool = True) -> Images:
    """Return every image cropped and perhaps mirrored once as in training, by seed."""
    generator = runtime.generator(seed, "augmented")
    pixels = [
        crop_and_flip(images.pixels[part], random_crops(len(part), images.pixels.shape[-2], generator, mirror=mirror))
        for part in torch.arange(len(images)).split(4096)
    ]
    return Images(torch.cat(pixels), images.labels)


def random_crops(count: int, height: int, generator: torch.Generator, *, mirror: bool = True) -> Tensor:
    """Draw random crops of `count` images, int64 (3, count): row and column of the corner, and whether to mirror.

    Without `mirror` no image is mirrored, and the crops are the same.
    """
    offsets = 2 * (height // 8) + 1
    top, left = (torch.randint(0, offsets, (count, 1), generator=generator) for _ in range(2))
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    return torch.cat([top, left, (mirrored & mirror).long()], 1).T


def crop_and_flip(pixels: Tensor, crops: Tensor) -> Tensor:
    """Crop each image of (N, C, H, W) from its zero-padded version, and mirror it if `crops` says so.

    The padding is an eighth of the height on each side: 4 pixels for CIFAR, as usual. `crops` is what
    `random_crops` returns.
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
