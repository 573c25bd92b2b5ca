"""Labelled images, and data sets with their official split, or with a selection of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeppatch.data.files import StoredPixels


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` (N, 3, H, W), in memory or read from disk by index, `labels` int64 (N,).

    Pixels are uint8; those that do not have 8 bits are float32 in [0, 1].
    """

    pixels: Tensor | StoredPixels
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at `indices`, in that order."""
        pixels = self.pixels.take(indices) if isinstance(self.pixels, StoredPixels) else self.pixels[indices]
        return Images(pixels, self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """Return the same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def only(self, classes: Sequence[int]) -> Images:
        """Return the images of some classes, in the same order; labels become indices in `classes`."""
        wanted = torch.tensor(classes, device=self.labels.device)
        image, label = (self.labels.unsqueeze(1) == wanted).nonzero().T
        return Images(self.take(image).pixels, label)


@dataclass(frozen=True)
class Source:
    """A data set; `augment` says whether a cropped image keeps its class, and `mirror` whether a mirrored one does.

    `parts` are whole data sets, and the labels of the classes that are selected of each, where this is a selection.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    augment: bool = True
    mirror: bool = True
    parts: tuple[tuple[Source, tuple[int, ...]], ...] = ()

    def only(self, name: str, classes: Sequence[int]) -> Source:
        """Return the data set `name` that has some of this one's classes, in the order of `classes`."""
        names = tuple(self.classes[label] for label in classes)
        return Source(name, self.train.only(classes), self.test.only(classes), names, self.augment, self.mirror)


def joined(first: Images, second: Images, classes: int) -> Images:
    """Concatenate images in memory; `classes` is added to the labels of `second`."""
    assert isinstance(first.pixels, Tensor)
    assert isinstance(second.pixels, Tensor)
    return Images(torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels + classes]))


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [0, 1]; pixels that are float already are returned as they are."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)
