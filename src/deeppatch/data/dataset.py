"""The data of all methods: training, validation and test images, and the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.data import sources
from deeppatch.data.images import Images, to_float
from deeppatch.data.reading import DataInput, class_names, same_size, to_images
from deeppatch.data.scaling import Sizing
from deeppatch.data.splits import hold_out, split


@dataclass(frozen=True)
class Data:
    """Labelled images in three parts: `train` for training, `val` for all choices, `test` for measurements.

    `classes` are the names of the classes in the order of the labels. `crop` and `mirror` say whether cropped and
    mirrored images keep their class, so that training may augment them. Create data by `Data.of` or `load_data`.

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
        """Create data in memory from (pixels, labels), a torch Dataset or a DataLoader for each part.

        Args:
            train: The training images. Pixels are uint8, or float in [0, 1] without normalisation, (N, 3, H, W) of
                one size; grey images, (N, 1, H, W) or (N, H, W), are repeated to three channels. A Dataset may also
                hold PIL images. Labels are whole numbers from 0.
            test: The test images.
            val: The validation images (default: a class-stratified part of `train`, which is held out).
            classes: The names of the classes, or their number (default: those of a Dataset, else by the labels).
            val_share: The share of `train` to hold out (default: 1/50, up to a fifth if that is < 1,000 images).
            seed: The seed of the choice of held-out images.

        Raises:
            UserError: When pixels are outside [0, 1] or not finite, sizes of images differ, or labels and classes do
                not fit each other.
        """
        parts = [to_images(train, "train"), to_images(test, "test")]
        if val is not None:
            parts.append(to_images(val, "val"))
        same_size([part.pixels for part in parts], "train, val and test")
        names = class_names((train, test, val), classes, parts)
        if val is None:
            kept, held_out = hold_out(parts[0], val_share, seed, "data", names)
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
    image_size: int | None = None,
    squash: bool = False,
    cache: Path | str | None = None,
) -> Data:
    """Load a data set by name, and download it if it is absent and its publisher allows that.

    Args:
        name: `digits` (embedded), `cifar10`, `cifar100`, `svhn`, `gtsrb`, `stl10`, `tinyimagenet`, `imagenet`,
            `folder:PATH` for PATH/{train,test}/CLASS/IMAGE, `npz:FILE` for arrays, or `hf:PATH` for a saved Hugging
            Face data set.
        data_dir: The folder of all data sets.
        seed: The seed of the choice of held-out images.
        limit: The size of a class-stratified subset of each part to load (default: all).
        val_share: share of the training part that is held out as val (default: 1/50, up to a fifth where that is under
            1,000 images).
        image_size: The height and width in pixels that images get (default: their own, which must be one size).
        squash: Whether images are resized to that without regard to their aspect; else their centre is cut.
        cache: A folder that keeps large sets of image files decoded, mapped into memory (default: in memory).

    Raises:
        UserError: When the data set is unknown, absent or damaged.

    >>> data = load_data("digits", limit=100)
    >>> len(data.train), len(data.test), len(data.classes), tuple(data.train.pixels.shape[1:])
    (100, 100, 10, (3, 32, 32))
    """
    sizing = Sizing(image_size, squash, cache=None if cache is None else Path(cache))
    source = sources.load(name, Path(data_dir), seed, sizing)
    parts = split(source, seed, limit, val_share)
    return Data(parts.train, parts.val, parts.test, source.classes, source.name, source.augment, source.mirror)
