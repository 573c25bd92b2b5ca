"""The views of a split that stages read: clean, random, replace, expand and append, as streams of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions import Corruption
from deeppatch.data.sources import Images
from deeppatch.distributed.ranks import part_of
from deeppatch.runtime import generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class View:
    """A fixed sequence of (image, level) pairs of one split, read in order as (pixels in [0, 1], labels) batches.

    `index` and `levels` are int64 tensors (M,): which image, and at which level (0 is clean; without a corruption
    all are). `part` (which, of how many) says which part of every batch is read.
    """

    images: Images
    corruption: Corruption | None
    index: Tensor
    levels: Tensor
    batch_size: int
    part: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    @property
    def sizes(self) -> list[int]:
        """How many images each whole batch has."""
        return batch_sizes(len(self.index), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index, levels in zip(self.index.split(self.batch_size), self.levels.split(self.batch_size), strict=True):
            own = part_of(len(index), *self.part)
            pixels, labels = to_float(self.images.pixels[index[own]]), self.images.labels[index[own]]
            yield pixels if self.corruption is None else self.corruption(pixels, levels[own]), labels

    def divided(self, which: int, of: int) -> View:
        """Return the same view, of every batch part `which` (from 0) of `of`."""
        return replace(self, part=(which, of))

    @property
    def labels(self) -> Tensor:
        """Labels (M,) in the order of the view."""
        return self.images.labels[self.index]


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [0, 1]."""
    return pixels.float().div_(255)


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


def degraded_draw(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, each at one level drawn uniformly: one fixed draw by seed."""
    levels = torch.randint(1, len(corruption) + 1, (len(images),), generator=generator(seed, "degraded-draw"))
    return View(
        images,
        corruption,
        torch.arange(len(images), device=images.labels.device),
        levels.to(images.labels.device),
        batch_size,
    )


def ordered(view: View, order: Tensor) -> View:
    """Return the same images at the same levels, in the order of their places (M,) in `view`."""
    return replace(view, index=view.index[order], levels=view.levels[order])


def mixed_stream(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, shuffled, with probability 1/2 degraded at a level drawn uniformly."""
    draw = generator(seed, "mixed-stream")
    order = torch.randperm(len(images), generator=draw)
    levels = random_levels(len(images), len(corruption), draw)
    return View(images, corruption, order.to(images.labels.device), levels.to(images.labels.device), batch_size)


def random_levels(count: int, kinds: int, draw: torch.Generator) -> Tensor:
    """Draw levels (count,): 0 with probability 1/2, else uniform over 1..kinds."""
    degraded = torch.rand(count, generator=draw) < 0.5
    return torch.where(degraded, torch.randint(1, kinds + 1, (count,), generator=draw), 0)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return how many of `count` images each batch has: all are full but for the last."""
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]


@dataclass(frozen=True)
class Shuffled:
    """One epoch of training batches: shuffled, optionally cropped (and flipped), then degraded at drawn levels.

    The draws depend on `seed` and `epoch` alone, so an epoch can be read again after an interruption. Without `mirror`
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
            own = part_of(size, *self.part)
            own = slice(start + own.start, start + own.stop)
            pixels = to_float(self.images.pixels[order[own]])
            if self.augment:
                pixels = crop_and_flip(pixels, crops[:, own])
            if self.corruption is not None:
                pixels = self.corruption(pixels, levels[own])
            yield pixels, self.images.labels[order[own]]
            start += size

    def divided(self, which: int, of: int) -> Shuffled:
        """Return the same epoch, of every batch part `which` (from 0) of `of`."""
        return replace(self, part=(which, of))

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the whole epoch: order (n,), levels (n,) and crops (3, n)."""
        draw = generator(self.seed, "epoch", self.epoch)
        order = torch.randperm(len(self.images), generator=draw)
        kinds = 0 if self.corruption is None else len(self.corruption)
        levels, crops = [], []
        for size in self.sizes:
            if self.augment:
                crops.append(random_crops(size, self.images.pixels.shape[-2], draw, mirror=self.mirror))
            levels.append(random_levels(size, kinds, draw) if kinds else torch.zeros(size, dtype=torch.long))
        return order, torch.cat(levels), torch.cat(crops, 1) if crops else torch.zeros(3, 0, dtype=torch.long)


def augmented(images: Images, seed: int, *, mirror: bool = True) -> Images:
    """Return every image cropped and perhaps mirrored once, as training draws it: one fixed draw by seed."""
    draw = generator(seed, "augmented")
    pixels = [
        crop_and_flip(images.pixels[part], random_crops(len(part), images.pixels.shape[-2], draw, mirror=mirror))
        for part in torch.arange(len(images)).split(4096)
    ]
    return Images(torch.cat(pixels), images.labels)


def random_crops(count: int, height: int, draw: torch.Generator, *, mirror: bool = True) -> Tensor:
    """Draw where `count` images are cropped, int64 (3, count): rows from the top, columns from the left, mirrored.

    Without `mirror` no image is mirrored; the places are the same.
    """
    places = 2 * (height // 8) + 1
    top, left = (torch.randint(0, places, (count, 1), generator=draw) for _ in range(2))
    mirrored = torch.rand(count, 1, generator=draw) < 0.5
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
