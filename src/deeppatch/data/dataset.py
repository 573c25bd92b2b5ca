"""The data that methods work on: images to learn from, to choose by and to measure on, and what their classes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.data import sources
from deeppatch.data.images import Images, to_float
from deeppatch.data.reading import DataInput, class_names, same_size, to_images
from deeppatch.data.splits import hold_out, split


@dataclass(frozen=True)
class Data:
    """Labelled images in three parts: `train` to learn from, `val` to choose by, `test` to measure on.

    `classes` are the names of the classes in the order of the labels. `crop` and `mirror` say whether a cropped and a
    mirrored image keep their class, so that training may augment. Make one with `Data.of` or `load_data`.

    >>> import torch
    >>> pixels, labels = torch.rand(40, 1, 20, 28), torch.arange(40) % 2
    >>> data = Data.of(train=(pixels[:30], labels[:30]), test=(pixels[30:], labels[30:]), classes=["cat", "dog"])
    >>> len(data.train), len(data.val), len(data.test), data.classes
    (24, 6, 10, ('cat', 'dog'))
    >>> tuple(data.train.pixels.shape)
    (24, 3, 20, 28)
    """

    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    name: str = "data"
    crop: bool = False
    mirror: bool = False

    @staticmethod
    def of(
        train: DataInput,
        test: DataInput,
        val: DataInput | None = None,
        *,
        classes: Sequence[str] | int | None = None,
        val_share: float | None = None,
        seed: int = 2021,
    ) -> Data:
        """Hold data in memory, each part given as (pixels, labels), as a torch Dataset or as a DataLoader.

        Args:
            train: images to learn from. Pixels are uint8, or float in [0, 1] without normalisation, (N, 3, H, W) of
                any one size; grey images, (N, 1, H, W) or (N, H, W), are repeated to three channels. A Dataset may also
                hold PIL images. Labels are whole numbers from 0.
            test: images to measure on.
            val: images to choose by; where there are none, a class-stratified part of `train` is held out.
            classes: names of the classes, or how many there are (default: a Dataset's own, else as the labels say).
            val_share: share of `train` that is held out (default: 1/50, up to a fifth where that is < 1,000 images).
            seed: what the choice of held-out images depends on.

        Raises:
            UserError: where pixels are outside [0, 1] or not finite, sizes of images differ, or labels and classes do
                not go together.
        """
        parts = [to_images(train, "train"), to_images(test, "test")]
        if val is not None:
            parts.append(to_images(val, "val"))
        same_size([part.pixels for part in parts], "train, val and test")
        names = class_names((train, test, val), classes, parts)
        if val is None:
            kept, held_out = hold_out(parts[0], val_share, seed, "data")
        else:
            kept, held_out = parts[0], parts[2]
        return Data(kept, held_out, parts[1], tuple(names))

    def to(self, device: torch.device | str) -> Data:
        """Return the same data on `device`."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **parts)

    @property
    def example(self) -> Tensor:
        """Two images of val, float (2, 3, H, W) in [0, 1], to trace networks with."""
        return to_float(self.val.pixels[:2])


def load_data(
    name: str,
    data_dir: Path | str = "data",
    *,
    seed: int = 2021,
    limit: int | None = None,
    val_share: float | None = None,
    folder_size: int = sources.SIZE,
) -> Data:
    """Load a data set by name, downloaded where it is absent and its publisher allows that.

    Args:
        name: `digits` (embedded), `cifar10`, `cifar100`, `svhn`, `gtsrb`, `imagenet`, or `folder:PATH` for
            PATH/{train,test}/CLASS/IMAGE.
        data_dir: where data sets lie.
        seed: what the choice of held-out images depends on.
        limit: keep a class-stratified subset of this many images of every part.
        val_share: share of the training part that is held out as val (default: 1/50, up to a fifth where that is under
            1,000 images).
        folder_size: height and width in pixels to which images of a folder are resized.

    Raises:
        UserError: where the data set is unknown, absent or damaged.

    >>> data = load_data("digits", limit=100)
    >>> len(data.train), len(data.test), len(data.classes), tuple(data.train.pixels.shape[1:])
    (100, 100, 10, (3, 32, 32))
    """
    source = sources.load(name, Path(data_dir), seed, folder_size=folder_size)
    parts = split(source, seed, limit, val_share)
    return Data(parts.train, parts.val, parts.test, source.classes, source.name, source.augment, source.mirror)
