"""Data sets by name: CIFAR-10/100, SVHN, GTSRB, digits and image folders as uint8 tensors, ImageNet as files."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms.v2.functional import InterpolationMode, resize

from deeppatch.data import street
from deeppatch.data.files import Files, open_resized
from deeppatch.errors import DataProblem

SIZE = 32


@dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` uint8 (N, 3, H, W), in memory or read from files by index, `labels` int64 (N,)."""

    pixels: Tensor | Files
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at `indices`, in that order."""
        pixels = self.pixels.take(indices) if isinstance(self.pixels, Files) else self.pixels[indices]
        return Images(pixels, self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """Return the same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Source:
    """A data set as its makers split it.

    `augment` says whether a crop keeps an image's class, and `mirror` whether its mirror image is of the same one.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    augment: bool = True
    mirror: bool = True


def load(name: str, data_dir: Path, seed: int) -> Source:
    """Load a data set by its command-line name; DataProblem where it is unknown, absent or damaged."""
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")), slug(name))
    check_name(name)
    return SOURCES[name](data_dir, seed)


def check_name(name: str) -> None:
    """Raise DataProblem unless `name` is that of a data set."""
    if name not in SOURCES and not name.startswith("folder:"):
        raise DataProblem(f"-d {name}: unknown data set; choose from {', '.join(SOURCES)} or folder:PATH")


def slug(name: str) -> str:
    """Return the name under which a data set's artifacts are kept: `folder:a/b` becomes folder-b-HASH, by its path."""
    if not name.startswith("folder:"):
        return name
    path = Path(name.removeprefix("folder:")).resolve()
    return f"folder-{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def _cifar(kind: type[CIFAR10], name: str, data_dir: Path) -> Source:
    if not (data_dir / kind.base_folder).exists() and (data_dir / name).is_dir():
        return _folder(data_dir / name, name)
    parts = []
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            try:
                part = kind(str(data_dir), train=train, download=False)
            except RuntimeError:  # torchvision's answer to absent and to damaged files alike
                part = kind(str(data_dir), train=train, download=True)
            pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append(Images(pixels, torch.tensor(part.targets)))
    except (urllib.error.URLError, RuntimeError, TimeoutError, ConnectionError, pickle.UnpicklingError) as error:
        state = "damaged or incomplete" if (data_dir / kind.base_folder).exists() else "absent"
        raise DataProblem(
            f"{name}: the files in {data_dir / kind.base_folder} are {state} and cannot be downloaded ({error}); "
            f"unpack the archive in {data_dir}, or put an image folder at {data_dir / name}/{{train,test}}/CLASS"
        ) from error
    return Source(name, parts[0], parts[1], tuple(part.classes))


def _cifar10(data_dir: Path, seed: int) -> Source:
    return _cifar(CIFAR10, "cifar10", data_dir)


def _cifar100(data_dir: Path, seed: int) -> Source:
    return _cifar(CIFAR100, "cifar100", data_dir)


def _street(read: Callable[[Path, int], list[street.Part]], name: str, classes: int, data_dir: Path) -> Source:
    """Read signs or house numbers, which a mirror image would change."""
    try:
        train, test = (Images(*part) for part in read(data_dir, SIZE))
    except (urllib.error.URLError, RuntimeError, TimeoutError, ConnectionError, ValueError) as error:
        raise DataProblem(
            f"{name}: the files in {data_dir / name} are absent or damaged and cannot be downloaded ({error}); "
            "put the files that torchvision downloads there"
        ) from error
    return Source(name, train, test, tuple(map(str, range(classes))), mirror=False)


def _svhn(data_dir: Path, seed: int) -> Source:
    return _street(street.svhn, "svhn", 10, data_dir)


def _gtsrb(data_dir: Path, seed: int) -> Source:
    return _street(street.gtsrb, "gtsrb", 43, data_dir)


def _digits(data_dir: Path, seed: int) -> Source:
    """Build the embedded data set: 1,797 handwritten digits, 8x8 in 17 grey levels (UCI), split 80/20 by seed."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    large = resize(grey, [SIZE, SIZE], InterpolationMode.NEAREST)
    pixels = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    everything = Images(pixels, torch.from_numpy(digits.target).long())
    train, test = train_test_split(np.arange(len(everything)), test_size=0.2, stratify=digits.target, random_state=seed)
    train, test = (everything.take(torch.from_numpy(np.sort(part))) for part in (train, test))
    return Source("digits", train, test, classes=tuple("0123456789"), augment=False, mirror=False)


def _folder(path: Path, name: str) -> Source:
    """Read PATH/{train,test}/CLASS/*; every image becomes RGB of 32x32 pixels."""
    parts, classes = [], []
    for part in ("train", "test"):
        folder = path / part
        if not folder.is_dir():
            raise DataProblem(f"{folder} is missing; an image folder is laid out as {path}/{{train,test}}/CLASS/IMAGE")
        try:
            listing = ImageFolder(str(folder))
            pixels = torch.stack([open_resized(Path(file), SIZE) for file, _ in listing.samples])
        except FileNotFoundError as error:
            raise DataProblem(f"{folder}: {str(error).splitlines()[0]}; add images or remove the class") from error
        parts.append(Images(pixels, torch.tensor(listing.targets)))
        classes.append(tuple(listing.classes))
    _same_classes(path, ("train", "test"), classes)
    return Source(name, parts[0], parts[1], classes[0])


def _imagenet(data_dir: Path, seed: int) -> Source:
    """List ILSVRC 2012 under imagenet/ILSVRC/{train,val}/CLASS; its validation images are the test part."""
    root = data_dir / "imagenet" / "ILSVRC"
    parts, classes = [], []
    for name in ("train", "val"):
        try:
            listing = ImageFolder(str(root / name))
        except (FileNotFoundError, NotADirectoryError) as error:
            state = str(error).splitlines()[0].rstrip(".") if (root / name).is_dir() else f"{root / name} is missing"
            raise DataProblem(
                f"imagenet: {state}; it cannot be downloaded from here: get the training and validation images of "
                f"ILSVRC 2012 from image-net.org, lay them out as {root}/{{train,val}}/n01440764/IMAGE.JPEG, "
                "one folder a class in both"
            ) from error
        parts.append(Images(Files([path for path, _ in listing.samples], 256, 224), torch.tensor(listing.targets)))
        classes.append(tuple(listing.classes))
    _same_classes(root, ("train", "val"), classes)
    return Source("imagenet", parts[0], parts[1], classes[0])


def _same_classes(path: Path, names: tuple[str, str], classes: list[tuple[str, ...]]) -> None:
    if odd := sorted(set(classes[0]) ^ set(classes[1])):
        both = " and ".join(names)
        raise DataProblem(f"{path}: {both} name different classes ({', '.join(odd[:4])}); give both the same")


SOURCES: dict[str, Callable[[Path, int], Source]] = {
    "digits": _digits, "cifar10": _cifar10, "cifar100": _cifar100, "svhn": _svhn, "gtsrb": _gtsrb,
    "imagenet": _imagenet,
}  # fmt: skip
