"""Degraded images that exist already, one for each clean image: one's own, or a released benchmark's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeppatch.data.corruption_names import COMMON, SEVERITIES
from deeppatch.data.corruptions.draws import fingerprints
from deeppatch.data.files import Files
from deeppatch.data.folders import list_files
from deeppatch.data.images import Images
from deeppatch.data.scaling import like, square
from deeppatch.errors import DataProblem, UserError

Read = Callable[[Tensor], Tensor]  # indices (n,) -> uint8 pixels (n, 3, H, W)
AT_ONCE = 4096


class Table:
    """Images of several parts, found again by their pixels; of equal images the first. It is filled at first use."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self._sorted: Tensor | None = None
        self._index = torch.zeros(0, dtype=torch.long)

    def find(self, pixels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the index of each of float pixels (N, 3, H, W), counted over all parts, and its fingerprint.

        `names` are those of the levels, for the message of a DataProblem where an image is not known.
        """
        if self._sorted is None:
            found = [
                fingerprints(images.pixels[part.to(images.labels.device)].cpu())
                for images in self.parts
                for part in torch.arange(len(images)).split(AT_ONCE)
            ]
            # stable, so that the first of equal images is found
            self._sorted, self._index = torch.cat(found).sort(stable=True)
        wanted = fingerprints((pixels * 255).round().to(torch.uint8)).cpu()
        place = torch.searchsorted(self._sorted, wanted).clamp_(max=len(self._sorted) - 1)
        if missing := int((self._sorted[place] != wanted).sum()):
            raise DataProblem(
                f"{missing} of {len(wanted)} images have no degraded version in {', '.join(names)}; give the "
                "images that the degraded ones were made from, of the same size, neither cropped nor mirrored"
            )
        return self._index[place], wanted


class PairedCorruption:
    """A corruption that looks up the degraded version of each clean image, at several levels.

    A clean image is recognised by its pixels, so images must be given as they are in `clean`: neither cropped nor
    mirrored. Equal clean images have one degraded version, the first.

    Args:
        clean: The clean images that have degraded versions, or several parts of them.
        levels: For the name of each level, a function from indices of clean images, int64 (n,), to the pixels of their
            degraded versions, uint8 (n, 3, H, W).
        test_only: Whether only test images have degraded versions.
    """

    draws = False
    looks_up = True

    def __init__(
        self, clean: Images | Sequence[Images], levels: Mapping[str, Read], *, test_only: bool = False
    ) -> None:
        self.levels = dict(levels)
        self.test_only = test_only
        self._table = Table([clean] if isinstance(clean, Images) else clean)

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the levels."""
        return tuple(self.levels)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Return the degraded versions of float pixels (N, 3, H, W) in [0, 1] at `levels`, (N,) or one for all."""
        if isinstance(levels, int):
            levels = torch.full((len(pixels),), levels, device=pixels.device)
        degraded = pixels.clone()
        for level, read in enumerate(self.levels.values(), start=1):
            chosen = (levels == level).nonzero().squeeze(1)
            if len(chosen):
                found = read(self._table.find(pixels[chosen], self.level_names)[0])
                degraded[chosen] = found.to(pixels.device).to(pixels.dtype).div_(255)
        return degraded


def paired_folder(path: Path, clean: Images, names: Sequence[str]) -> PairedCorruption:
    """Return one level of one's own degraded images, PATH/CLASS/IMAGE, that have the names of clean images.

    Args:
        path: The folder of degraded images, with one folder for each class.
        clean: The clean images.
        names: The name of each clean image, CLASS/IMAGE. The ending may differ where that leaves no doubt: cat/1.png
            is paired with cat/1.jpg, but not beside another cat/1.

    Raises:
        DataProblem: When a clean image has no degraded one of its name, or there is none at all.
    """
    if not path.is_dir():
        raise DataProblem(f"{path} is missing; degraded images are laid out as {path}/CLASS/IMAGE")
    found = by_name(path, list_files(path, Counter()), names)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataProblem(
            f"{path}: {len(missing)} of {len(names)} images have no degraded version of their name, such as "
            f"{missing[0]}; give every image of the data set one, in the folder of its class"
        )
    files = Files([found[name] for name in names], like(clean.pixels))
    return PairedCorruption(clean, {f"{path.resolve().name}": lambda index: files[index]})


def released(
    path: Path, test: Images, names: Sequence[str] = (), severities: Sequence[int] = SEVERITIES
) -> PairedCorruption:
    """Return the levels of CIFAR-10-C or CIFAR-100-C, read where its files lie.

    Args:
        path: The folder of NAME.npy and labels.npy.
        test: The test images of the data set, all and in their official order.
        names: Types to read (default: all that are there).
        severities: Severities to read.

    Raises:
        DataProblem: When a file is missing, or is not that of these test images.
    """
    count, (height, width) = len(test), test.pixels.shape[-2:]
    wanted = list(names) or [name for name in COMMON if (path / f"{name}.npy").is_file()]
    if unknown := [name for name in wanted if name not in COMMON]:
        raise UserError(f"{', '.join(unknown)}: no released type; choose from {', '.join(COMMON)}")
    if not wanted:
        raise DataProblem(f"{path} has no file such as {COMMON[0]}.npy; unpack CIFAR-10-C or CIFAR-100-C there")
    labels = _array(path / "labels.npy", (len(SEVERITIES) * count,))
    if not np.array_equal(labels[:count], test.labels.cpu().numpy()):
        raise DataProblem(f"{path / 'labels.npy'} holds other labels than the test images; give them in official order")
    levels: dict[str, Read] = {}
    for name in wanted:
        pixels = _array(path / f"{name}.npy", (len(SEVERITIES) * count, height, width, 3))
        levels |= {f"{name}-{severity}": _rows(pixels, (severity - 1) * count) for severity in severities}
    return PairedCorruption(test, levels, test_only=True)


def released_files(path: Path, severity: int, name: str, clean: Sequence[str]) -> Files:
    """Return the images of ImageNet-C, NAME/SEVERITY/WNID/FILE.JPEG of 224 pixels, of clean files WNID/FILE.JPEG.

    They are read as they are, without resizing.

    Raises:
        DataProblem: When an image is missing.
    """
    found = [path / name / str(severity) / file for file in clean]
    if missing := [file for file in found if not file.is_file()]:
        raise DataProblem(f"{missing[0]} is missing, and {len(missing) - 1} others; unpack ImageNet-C in {path}")
    return Files([str(file) for file in found], square(224))


def released_images(path: Path, test: Images, severities: Sequence[int] = SEVERITIES) -> PairedCorruption:
    """Return the levels of ImageNet-C that are there, for test images that are files WNID/FILE.JPEG."""
    assert isinstance(test.pixels, Files)
    clean = ["/".join(Path(file).parts[-2:]) for file in test.pixels.paths]
    wanted = [name for name in COMMON if (path / name).is_dir()]
    if not wanted:
        raise DataProblem(f"{path} has no folder such as {COMMON[0]}; unpack ImageNet-C there")
    files = {f"{name}-{level}": released_files(path, level, name, clean) for name in wanted for level in severities}
    return PairedCorruption(test, {name: each.__getitem__ for name, each in files.items()}, test_only=True)


def _rows(pixels: np.ndarray, first: int) -> Read:
    def read(index: Tensor) -> Tensor:
        return torch.from_numpy(pixels[first + index.numpy()]).permute(0, 3, 1, 2)

    return read


def _array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of numpy into memory; DataProblem unless it has a shape and whole numbers."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataProblem(f"{file} is missing; unpack the whole archive of the data set there") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataProblem(f"{file} is damaged; unpack the archive again") from error
    if found.shape != shape or not np.issubdtype(found.dtype, np.integer):
        raise DataProblem(
            f"{file} holds {found.dtype} {found.shape}, not whole numbers {shape}; it is another data set's"
        )
    return found


def by_name(folder: Path, files: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the degraded file of each clean image that has one, by the name of the clean image.

    Names are paths from `folder` on. A file of the whole name comes first; one with another ending is taken where
    neither the clean nor the degraded images have two of that name.
    """
    whole = {os.path.relpath(file, folder): file for file in files}
    clean, degraded = (Counter(map(_stem, each)) for each in (names, whole))
    single = {_stem(name): file for name, file in whole.items() if degraded[_stem(name)] == 1}
    found = {name: whole.get(name) or (single.get(_stem(name)) if clean[_stem(name)] == 1 else None) for name in names}
    return {name: file for name, file in found.items() if file is not None}


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
