"""The views of a split that stages read: clean, random, replace, expand and append, as streams of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.data.corruptions import Blur
from deeppatch.data.sources import Images
from deeppatch.runtime import generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class View:
    """A fixed sequence of (image, level) pairs of one split, read in order as (pixels in [0, 1], labels) batches.

    `index` and `levels` are int64 tensors (M,): which image, and at which level of the blur (0 is clean; without a
    blur all are).
    """

    images: Images
    blur: Blur | None
    index: Tensor
    levels: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index, levels in zip(self.index.split(self.batch_size), self.levels.split(self.batch_size), strict=True):
            pixels = to_float(self.images.pixels[index])
            yield pixels if self.blur is None else self.blur(pixels, levels), self.images.labels[index]

    @property
    def labels(self) -> Tensor:
        """Labels (M,) in the order of the view."""
        return self.images.labels[self.index]


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [0, 1]."""
    return pixels.float().div_(255)


def levels_view(images: Images, blur: Blur | None, levels: list[int], batch_size: int) -> View:
    """Return every image at each level, one level after the other (expand: 1..6; append: 0..6; replace: one level)."""
    device = images.labels.device
    index = torch.arange(len(images), device=device).repeat(len(levels))
    each = torch.tensor(levels, device=device).repeat_interleave(len(images))
    return View(images, blur, index, each, batch_size)


def expand(images: Images, blur: Blur, batch_size: int) -> View:
    """Return the degraded copies of every image at each level: 6n images."""
    return levels_view(images, blur, list(range(1, len(blur.sigmas) + 1)), batch_size)


def append(images: Images, blur: Blur, batch_size: int) -> View:
    """Return every image clean, then at each level: 7n images."""
    return levels_view(images, blur, list(range(len(blur.sigmas) + 1)), batch_size)


def clean(images: Images, batch_size: int) -> View:
    """Return every image once, clean."""
    return levels_view(images, None, [0], batch_size)


def degraded_draw(images: Images, blur: Blur, batch_size: int, seed: int) -> View:
    """Return every image once, each at one level drawn uniformly: one fixed draw by seed."""
    levels = torch.randint(1, len(blur.sigmas) + 1, (len(images),), generator=generator(seed, "degraded-draw"))
    return View(
        images,
        blur,
        torch.arange(len(images), device=images.labels.device),
        levels.to(images.labels.device),
        batch_size,
    )


def ordered(view: View, order: Tensor) -> View:
    """Return the same images at the same levels, in the order of their places (M,) in `view`."""
    return replace(view, index=view.index[order], levels=view.levels[order])


def mixed_stream(images: Images, blur: Blur, batch_size: int, seed: int) -> View:
    """Return every image once, shuffled, with probability 1/2 degraded at a level drawn uniformly."""
    draw = generator(seed, "mixed-stream")
    order = torch.randperm(len(images), generator=draw)
    levels = random_levels(len(images), len(blur.sigmas), draw)
    return View(images, blur, order.to(images.labels.device), levels.to(images.labels.device), batch_size)


def random_levels(count: int, kinds: int, draw: torch.Generator) -> Tensor:
    """Draw levels (count,): 0 with probability 1/2, else uniform over 1..kinds."""
    degraded = torch.rand(count, generator=draw) < 0.5
    return torch.where(degraded, torch.randint(1, kinds + 1, (count,), generator=draw), 0)


@dataclass(frozen=True)
class Shuffled:
    """One epoch of training batches: shuffled, optionally cropped and flipped, then degraded at drawn levels.

    The draws depend on `seed` and `epoch` alone, so an epoch can be read again after an interruption.
    """

    images: Images
    batch_size: int
    seed: int
    epoch: int
    blur: Blur | None = None
    augment: bool = False

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        draw = generator(self.seed, "epoch", self.epoch)
        device = self.images.labels.device
        for index in torch.randperm(len(self.images), generator=draw).split(self.batch_size):
            pixels = to_float(self.images.pixels[index.to(device)])
            if self.augment:
                pixels = crop_and_flip(pixels, draw)
            if self.blur is not None:
                pixels = self.blur(pixels, random_levels(len(index), len(self.blur.sigmas), draw).to(device))
            yield pixels, self.images.labels[index.to(device)]


def augmented(images: Images, seed: int) -> Images:
    """Return every image cropped and mirrored once, as training draws it: one fixed draw by seed."""
    draw = generator(seed, "augmented")
    pixels = [crop_and_flip(images.pixels[part], draw) for part in torch.arange(len(images)).split(4096)]
    return Images(torch.cat(pixels), images.labels)


def crop_and_flip(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Crop each image of (N, C, H, W) at a random place of its zero-padded self and mirror every second one.

    The padding is an eighth of the height on either side: 4 pixels for CIFAR, as the field has it.
    """
    count, _, height, width = pixels.shape
    padding = height // 8
    device = pixels.device
    top, left = (torch.randint(0, 2 * padding + 1, (count, 1), generator=draw).to(device) for _ in range(2))
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    mirrored = (torch.rand(count, 1, generator=draw) < 0.5).to(device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(pixels, (padding,) * 4).permute(0, 2, 3, 1)
    image = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[image, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
