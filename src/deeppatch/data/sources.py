"""Data sets by name: CIFAR, SVHN, GTSRB, digits, mixes of them and image folders as tensors, ImageNet as files."""

from __future__ import annotations

import os
import pickle
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2.functional import InterpolationMode, resize

from deeppatch.data import svhn_gtsrb
from deeppatch.data.arrays import load_npz
from deeppatch.data.class_selection import select_classes
from deeppatch.data.files import Files
from deeppatch.data.folders import Listing, NoImages, list_classes
from deeppatch.data.hugging_face import load_saved
from deeppatch.data.images import Images, Source, joined
from deeppatch.data.mapped import decoded
from deeppatch.data.names import check_folder, check_name, selection, slug
from deeppatch.data.scaling import Scaling, Sizing, square
from deeppatch.data.stl10 import CLASSES as STL10_CLASSES
from deeppatch.data.stl10 import SIDE as STL10_SIZE
from deeppatch.data.stl10 import stl10
from deeppatch.data.tiny_imagenet import SIDE as TINY_SIZE
from deeppatch.data.tiny_imagenet import list_tiny_imagenet
from deeppatch.errors import DataProblem
from deeppatch.runtime import generator

# the usual width and height of CIFAR, SVHN and GTSRB images, and that of the digits here
SIZE = 32
# images of ImageNet: the shorter side is scaled to 256, and the centre of 224 is cut
IMAGENET_SHORTER, IMAGENET_SIZE = 256, 224
NO_SIZING = Sizing()
# what torchvision raises for files that it can neither read nor download
UNREACHABLE = (urllib.error.URLError, RuntimeError, TimeoutError, ConnectionError, pickle.UnpicklingError)
# the classes of weak models, beside the one to correct (Qi et al., ASE 2022): of CIFAR-100, and digits
OTHERS = ("apple", "baby", "bed", "bicycle", "bottle", "bridge", "camel", "clock", "rose")
OTHER_DIGITS = (6, 7, 8, 9)
MIX_TRAIN, MIX_TEST = 500, 100


def load(name: str, data_dir: Path, seed: int, sizing: Sizing = NO_SIZING) -> Source:
    """Load a data set by its command-line name; DataProblem when it is unknown, absent or damaged.

    Images become as large as `sizing` says; where it says nothing, data sets in arrays keep their size, and files must
    all have one.
    """
    check_name(name)
    kind, _, detail = name.partition(":")
    if parts := selection(name):
        return select_classes(slug(name), {own: load(own, data_dir, seed, sizing) for own, _ in parts}, parts)
    if kind == "folder":
        return _folder(Path(detail), slug(name), sizing)
    if kind == "hf":
        return load_saved(Path(detail), slug(name), seed, sizing)
    if name in LISTED:
        return LISTED[name](data_dir, sizing)
    if kind == "npz":
        source = load_npz(Path(detail), slug(name), seed)
    else:
        source = (
            MIXES[kind](slug(name), data_dir, seed, int(detail)) if kind in MIXES else SOURCES[name](data_dir, seed)
        )
    train, test = (Images(sizing.in_memory(part.pixels), part.labels) for part in (source.train, source.test))  # type: ignore[arg-type]
    return replace(source, train=train, test=test)


def image_names(name: str, data_dir: Path) -> tuple[list[str], list[str]] | None:
    """Return the names CLASS/**/IMAGE of the training and of the test images, in order; None where they have none."""
    folder, parts = Path(name.removeprefix("folder:")), ("train", "test")
    if name == "imagenet":
        folder, parts = data_dir / "imagenet" / "ILSVRC", ("train", "val")
    elif not name.startswith("folder:"):
        archive = {"cifar10": CIFAR10.base_folder, "cifar100": CIFAR100.base_folder}.get(name)
        folder = data_dir / name
        if archive is None or (data_dir / archive).exists() or not folder.is_dir():
            return None
    train, test = (
        [os.path.relpath(file, folder / part) for file in list_classes(folder / part).paths] for part in parts
    )
    return train, test


def _cifar(kind: type[CIFAR10], name: str, data_dir: Path) -> Source:
    if not (data_dir / kind.base_folder).exists() and (data_dir / name).is_dir():
        return _folder(data_dir / name, name, Sizing(SIZE))
    make: Callable[..., CIFAR10] = kind
    parts = []
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            part = svhn_gtsrb.load_or_download(partial(make, str(data_dir), train))
            pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append(Images(pixels, torch.tensor(part.targets)))
    except UNREACHABLE as error:
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


def _official_or_folder(
    read: Callable[[Path, int], list[svhn_gtsrb.PixelsAndLabels]], name: str, classes: int, data_dir: Path, files: str
) -> Source:
    """Read GTSRB or SVHN, which must not be mirrored, from an image folder or from the official files."""
    if (data_dir / name / "train").is_dir():
        return _numbered(data_dir / name, name, classes)
    try:
        train, test = (Images(*part) for part in read(data_dir, SIZE))
    except (*UNREACHABLE, ValueError) as error:
        state = "damaged or incomplete" if any((data_dir / name).glob("*")) else "absent"
        raise DataProblem(
            f"{name}: the files in {data_dir / name} are {state} and cannot be downloaded ({error}); put {files} "
            f"there, or an image folder at {data_dir / name}/{{train,test}}/NUMBER"
        ) from error
    return Source(name, train, test, tuple(map(str, range(classes))), mirror=False)


def _svhn(data_dir: Path, seed: int) -> Source:
    return _official_or_folder(
        svhn_gtsrb.svhn, "svhn", 10, data_dir, "train_32x32.mat and test_32x32.mat of the data set's own page"
    )


def _gtsrb(data_dir: Path, seed: int) -> Source:
    return _official_or_folder(svhn_gtsrb.gtsrb, "gtsrb", 43, data_dir, "the files that torchvision downloads")


def _stl10(data_dir: Path, seed: int) -> Source:
    if (data_dir / "stl10" / "train").is_dir():
        return _folder(data_dir / "stl10", "stl10", Sizing(STL10_SIZE))
    train, test = (Images(*part) for part in stl10(data_dir))
    return Source("stl10", train, test, STL10_CLASSES)


def _tiny_imagenet(data_dir: Path, sizing: Sizing) -> Source:
    """Read tiny-imagenet-200/{train,val}; its validation images are the test part."""
    listings = list_tiny_imagenet(data_dir)
    train, test = _decoded(listings, square(sizing.size or TINY_SIZE, squash=sizing.squash), sizing.cache)
    return Source("tinyimagenet", train, test, listings[0].classes)


def _first_digits(whole: Callable[[Path, int], Source], name: str, data_dir: Path, seed: int) -> Source:
    return whole(data_dir, seed).only(name, range(5))


def _digits_mix(whole: Callable[[Path, int], Source], name: str, data_dir: Path, seed: int, target: int) -> Source:
    """Return the digits 6 to 9, and last the digit to correct."""
    return whole(data_dir, seed).only(name, (*OTHER_DIGITS, target))


def _cifar10_mix(name: str, data_dir: Path, seed: int, target: int) -> Source:
    """Return nine classes of CIFAR-100, and last the class of CIFAR-10 to correct, with about as many images."""
    others, wanted = _cifar100(data_dir, seed), _cifar10(data_dir, seed)
    if absent := sorted(set(OTHERS) - set(others.classes)):
        raise DataProblem(f"{name}: cifar100 has no class {', '.join(absent)}; give all of CIFAR-100, or these of it")
    others = others.only(name, [others.classes.index(name_of_class) for name_of_class in OTHERS])
    wanted = wanted.only(name, [target])
    drawn = torch.randperm(len(wanted.train), generator=generator(seed, "mix", target))[:MIX_TRAIN].sort().values
    return Source(
        name,
        joined(others.train, wanted.train.take(drawn), len(OTHERS)),
        joined(others.test, wanted.test.take(torch.arange(min(MIX_TEST, len(wanted.test)))), len(OTHERS)),
        (*OTHERS, *wanted.classes),
    )


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


def _folder(path: Path, name: str, sizing: Sizing, *, mirror: bool = True) -> Source:
    """Read PATH/{train,test}/CLASS/*; every image becomes RGB of one size."""
    check_folder(path)
    listings = [list_classes(path / part) for part in ("train", "test")]
    _same_classes(path, ("train", "test"), listings)
    scaling = sizing.of_files([file for listing in listings for file in listing.paths], path)
    train, test = _decoded(listings, scaling, sizing.cache)
    return Source(name, train, test, listings[0].classes, mirror=mirror)


def _decoded(listings: list[Listing], scaling: Scaling, cache: Path | None) -> list[Images]:
    """Return the images of each listing, decoded together, so that the cache holds them as one array."""
    paths = [file for listing in listings for file in listing.paths]
    labels = [label for listing in listings for label in listing.labels]
    everything = Images(decoded(Files(paths, scaling), cache), torch.tensor(labels))
    parts = torch.arange(len(paths)).split([len(each.paths) for each in listings])
    return [everything.take(part) for part in parts]


def _numbered(path: Path, name: str, count: int) -> Source:
    """Read an image folder whose classes are numbers, in the order of these; images must not be mirrored."""
    source = _folder(path, name, Sizing(SIZE), mirror=False)
    numbers = [int(name_of_class) if name_of_class.isdecimal() else -1 for name_of_class in source.classes]
    if sorted(numbers) != list(range(count)):
        raise DataProblem(f"{path}: {name} has {count} classes; call their folders 0 to {count - 1}, all in both parts")
    return source.only(name, [numbers.index(label) for label in range(count)])


def _imagenet(data_dir: Path, sizing: Sizing) -> Source:
    """List ILSVRC 2012 under imagenet/ILSVRC/{train,val}/CLASS; its validation images are the test part."""
    root = data_dir / "imagenet" / "ILSVRC"
    listings = []
    for name in ("train", "val"):
        try:
            if not (root / name).is_dir():
                raise NoImages(root, f"{root / name} is missing")
            listings.append(list_classes(root / name))
        except NoImages as error:
            raise DataProblem(
                f"imagenet: {error.state}; it cannot be downloaded from here: get the training and validation images "
                f"of ILSVRC 2012 from image-net.org, lay them out as {root}/{{train,val}}/n01440764/IMAGE.JPEG, "
                "one folder a class in both"
            ) from error
    _same_classes(root, ("train", "val"), listings)
    size = sizing.size or IMAGENET_SIZE
    scaling = Scaling(
        size, size, sizing.squash, None if sizing.squash else round(size * IMAGENET_SHORTER / IMAGENET_SIZE)
    )
    train, test = (Images(Files(each.paths, scaling), torch.tensor(each.labels)) for each in listings)
    return Source("imagenet", train, test, listings[0].classes)


def _same_classes(path: Path, names: tuple[str, str], listings: list[Listing]) -> None:
    if odd := sorted(set(listings[0].classes) ^ set(listings[1].classes)):
        both = " and ".join(names)
        raise DataProblem(f"{path}: {both} name different classes ({', '.join(odd[:4])}); give both the same")


SOURCES: dict[str, Callable[[Path, int], Source]] = {
    "digits": _digits, "cifar10": _cifar10, "cifar100": _cifar100, "svhn": _svhn, "gtsrb": _gtsrb,
    "svhn_5": partial(_first_digits, _svhn, "svhn_5"), "digits_5": partial(_first_digits, _digits, "digits_5"),
    "stl10": _stl10,
}  # fmt: skip
# data sets in image files, which may stay on disk
LISTED: dict[str, Callable[[Path, Sizing], Source]] = {"tinyimagenet": _tiny_imagenet, "imagenet": _imagenet}
MIXES: dict[str, Callable[[str, Path, int, int], Source]] = {
    "cifar10-mix": _cifar10_mix, "svhn-mix": partial(_digits_mix, _svhn), "digits-mix": partial(_digits_mix, _digits),
}  # fmt: skip
