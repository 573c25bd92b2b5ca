"""One's own degraded images: each replaces the clean image of its name, or where there is none, one of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.data.corruption_names import RESERVED
from deeppatch.data.corruptions.draws import keys
from deeppatch.data.corruptions.paired import PairedCorruption, Table, by_name
from deeppatch.data.files import Files, StoredPixels
from deeppatch.data.folders import list_classes
from deeppatch.data.images import Images
from deeppatch.data.scaling import Scaling, like
from deeppatch.data.splits import hold_out, subset
from deeppatch.errors import DataProblem
from deeppatch.progress import info

PARTS = ("train", "val", "test")
MOST_NAMED = 4


@dataclass(frozen=True)
class CleanImages:
    """The clean images that degraded ones stand beside.

    Args:
        parts: Train, val and test, by name.
        classes: The names of the classes, in the order of the labels.
        official: The training part and the test part before val was held out, where names are known.
        names: The name of each image of these two, CLASS/**/IMAGE.
        seed: The seed of the val images that are held out of degraded training images.
        val_share: The share of these (default: as for clean images).
        limit: The most images of a part that are read.
        scaling: How degraded images in files become as large as the clean ones (default: the centre is cut).
    """

    parts: Mapping[str, Images]
    classes: Sequence[str]
    official: tuple[Images, Images] | None = None
    names: tuple[Sequence[str], Sequence[str]] | None = None
    seed: int = 2021
    val_share: float | None = None
    limit: int | None = None
    scaling: Scaling | None = None


class UnpairedCorruption:
    """One level of degraded images without clean versions: a clean image is replaced by a degraded one of its class.

    Which one depends on the clean image and on the generator's initial seed. Views of whole levels read every degraded
    image once instead; see `own_images`. Degraded images are returned as they are.

    Args:
        name: The name of the level.
        clean: Clean images by part.
        degraded: Degraded images by part; of a part that is not there none can be read.
    """

    draws = by_image = looks_up = True
    paired = False

    def __init__(self, name: str, clean: Mapping[str, Images], degraded: Mapping[str, Images]) -> None:
        self.level_names = (name,)
        self.degraded = dict(degraded)
        self.test_only = set(degraded) == {"test"}
        parts = [part for part in clean if part in degraded]
        known = [*(degraded[part] for part in parts), *(clean[part] for part in parts)]
        self._table = Table(known)
        self._parts = parts
        # what each image of the table is: -1 for a degraded one, else the part that it belongs to, and its class
        sizes = [len(images) for images in known]
        part_of_each = [-1] * len(parts) + list(range(len(parts)))
        self._part = torch.tensor(part_of_each).repeat_interleave(torch.tensor(sizes))
        self._label = torch.cat([images.labels.cpu() for images in known])

    def __len__(self) -> int:
        return 1

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Return a degraded image of the same class and part for each of float pixels (N, 3, H, W) at level 1."""
        if isinstance(levels, int):
            levels = torch.full((len(pixels),), levels, device=pixels.device)
        chosen = (levels > 0).nonzero().squeeze(1)
        if not len(chosen):
            return pixels
        found, fingerprint = self._table.find(pixels[chosen], self.level_names)
        drawn = keys(fingerprint, 0 if generator is None else generator.initial_seed(), "own", *self.level_names)
        degraded = pixels.clone()
        for number, part in enumerate(self._parts):
            images = self.degraded[part]
            for label in self._label[found][self._part[found] == number].unique():
                own = ((self._part[found] == number) & (self._label[found] == label)).nonzero().squeeze(1)
                pool = (images.labels.cpu() == label).nonzero().squeeze(1)
                index = pool[drawn[own].remainder(len(pool))]
                read = images.pixels[index.to(images.labels.device)].to(pixels.device)
                degraded[chosen[own.to(chosen.device)]] = read.to(pixels.dtype).div_(255)
        return degraded

    def own_images(self, level: int, images: Images) -> Images | None:
        """Return the degraded images of the part that clean images belong to, on their device."""
        if level != 1:
            return None
        first = images.take(torch.arange(min(64, len(images)), device=images.labels.device))
        part = self._part[self._table.find(first.pixels[: len(first)] / 255, self.level_names)[0]].mode().values
        return self.degraded[self._parts[int(part)]].to(images.labels.device)


def own_folder(path: Path, clean: CleanImages) -> PairedCorruption | UnpairedCorruption:
    """Return one level of one's own degraded images, PATH/{train,test}/CLASS/IMAGE, or PATH/CLASS/IMAGE for test only.

    They are paired where every clean image has a degraded one of its name, whatever the ending; this is logged.

    Raises:
        DataProblem: When classes differ from those of the clean images, or an image cannot be read.
    """
    if not path.is_dir():
        raise DataProblem(f"{path} is missing; degraded images are laid out as {path}/{{train,test}}/CLASS/IMAGE")
    both = all((path / part).is_dir() for part in ("train", "test"))
    folders = {part: path / part for part in ("train", "test")} if both else {"test": path}
    listed = {part: _listed(folder, clean.classes) for part, folder in folders.items()}
    name = path.resolve().name
    name = f"degraded-{name}" if name in RESERVED else name
    counts = " and ".join(f"{len(each)} {part}" for part, each in listed.items())
    pairs = None
    if clean.official is not None and clean.names is not None:
        pairs = [
            _matching(folders[part], listed[part], names)
            for part, names in zip(("train", "test"), clean.names, strict=True)
            if part in listed
        ]
    if pairs is not None and all(pair is not None for pair in pairs):
        info(f"degraded: {path}, {counts} images, each paired with the clean image of its name")
        return _paired(name, pairs, clean, test_only=not both)  # type: ignore[arg-type]
    info(f"degraded: {path}, {counts} images, not paired with clean ones by name")
    degraded = {part: _read(samples, clean) for part, samples in listed.items()}
    if both:
        kept, val = hold_out(degraded["train"], clean.val_share, clean.seed, str(path / "train"))
        degraded = {"train": kept, "val": val, "test": degraded["test"]}
    if clean.limit is not None:
        degraded = {part: subset(images, clean.limit, clean.seed, str(path)) for part, images in degraded.items()}
    for part, images in degraded.items():
        if absent := set(range(len(clean.classes))) - set(images.labels.tolist()):
            raise DataProblem(f"{path}: {part} has no image of class {clean.classes[min(absent)]}; add some")
    return UnpairedCorruption(name, clean.parts, degraded)


def _listed(folder: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    listing = list_classes(folder)
    if odd := sorted(set(listing.classes) ^ set(classes)):
        raise DataProblem(
            f"{folder}: clean and degraded images name different classes ({', '.join(odd[:MOST_NAMED])}); give both "
            "the same folders of classes"
        )
    label = {name: number for number, name in enumerate(classes)}
    named = (label[listing.classes[number]] for number in listing.labels)
    return list(zip(listing.paths, named, strict=True))


def _matching(folder: Path, samples: Sequence[tuple[str, int]], names: Sequence[str]) -> list[tuple[str, int]] | None:
    """Return the degraded image of each name, or None where one has none or some are of no clean image."""
    labels = dict(samples)
    found = by_name(folder, list(labels), names)
    if len(found) < len(names) or set(found.values()) != labels.keys():
        return None
    return [(found[name], labels[found[name]]) for name in names]


def _paired(
    name: str, pairs: Sequence[Sequence[tuple[str, int]]], clean: CleanImages, *, test_only: bool
) -> PairedCorruption:
    assert clean.official is not None
    official = clean.official[1:] if test_only else clean.official
    degraded = [_read(samples, clean) for samples in pairs]
    first = len(official[0])

    def read(index: Tensor) -> Tensor:
        found = degraded[-1].pixels[(index - (0 if test_only else first)).clamp(min=0)]
        if not test_only and bool((early := index < first).any()):
            found[early] = degraded[0].pixels[index[early]]
        return found

    return PairedCorruption(official, {name: read}, test_only=test_only)


def _read(samples: Sequence[tuple[str, int]], clean: CleanImages) -> Images:
    labels = torch.tensor([label for _, label in samples])
    pixels = clean.parts["test"].pixels
    files = Files([file for file, _ in samples], clean.scaling or like(pixels))
    return Images(files if isinstance(pixels, StoredPixels) else files[:], labels)
