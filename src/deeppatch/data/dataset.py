"""The data that methods work on: images to learn from, to choose by and to measure on, and what their classes are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeppatch.data.images import Images


@dataclass(frozen=True)
class Data:
    """Labelled images in three parts: `train` to learn from, `val` to choose by, `test` to measure on.

    `classes` are the names of the classes in the order of the labels. `crop` and `mirror` say whether a cropped and a
    mirrored image keep their class, so that training may augment.
    """

    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    name: str = "data"
    crop: bool = False
    mirror: bool = False

    def to(self, device: torch.device) -> Data:
        """Return the same data on `device`."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **parts)

    @property
    def example(self) -> Tensor:
        """Two images of val, float (2, 3, H, W) in [0, 1], to trace networks with."""
        return self.val.pixels[:2].float() / 255
