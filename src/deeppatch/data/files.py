"""Images that stay on disk and are decoded batch by batch, for data sets that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deeppatch.errors import DataProblem

# what shows through transparent pixels
BACKGROUND = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag


class Scales(Protocol):
    """What makes images one size: see `deeppatch.data.scaling.Scaling`."""

    @property
    def height(self) -> int:
        """The height of the result in pixels."""

    @property
    def width(self) -> int:
        """The width of the result in pixels."""

    @property
    def name(self) -> str:
        """Everything that changes the pixels."""

    def __call__(self, rgb: Image.Image) -> Tensor:
        """Return an RGB image as uint8 pixels (3, height, width)."""


class StoredPixels(ABC):
    """Images on disk that can be indexed like a tensor of uint8 pixels (N, 3, H, W)."""

    device: torch.device

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape (N, 3, H, W)."""

    @abstractmethod
    def take(self, indices: Tensor) -> StoredPixels:
        """Return the images at `indices`, in that order; none is read."""

    @abstractmethod
    def to(self, device: torch.device) -> StoredPixels:
        """Return the same images, to be read to `device`."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read some images to the device."""

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 of what the images are."""


class Files(StoredPixels):
    """Image files that are decoded and scaled whenever they are read."""

    def __init__(self, paths: Sequence[str], scaling: Scales, device: torch.device | str = "cpu") -> None:
        self.paths = paths
        self.scaling = scaling
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """The shape (N, 3, H, W)."""
        return torch.Size((len(self.paths), 3, self.scaling.height, self.scaling.width))

    def take(self, indices: Tensor) -> Files:
        """Return the files at `indices`, in that order; none is read."""
        return Files([self.paths[index] for index in indices.tolist()], self.scaling, self.device)

    def to(self, device: torch.device) -> Files:
        """Return the same files, to be decoded to `device`."""
        return Files(self.paths, self.scaling, device)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self.paths[index] if isinstance(index, slice) else [self.paths[index] for index in index.tolist()]
        return read_all(chosen, self.decode).to(self.device)

    def decode(self, path: str) -> Tensor:
        """Return one image, uint8 (3, H, W)."""
        return self.scaling(open_rgb(Path(path)))

    def digest(self) -> str:
        """Return a SHA-256 over paths, sizes and modification times of the files, and over the scaling."""
        return files_state(self.paths, self.scaling.name)


class Joined(StoredPixels):
    """Images of several places, one after the other, all of one size; `index` chooses some of them."""

    def __init__(self, parts: Sequence[Tensor | StoredPixels], index: Tensor | None = None) -> None:
        self.parts = parts
        self.index = torch.arange(sum(part.shape[0] for part in parts)) if index is None else index
        self.device = parts[0].device

    @property
    def shape(self) -> torch.Size:
        """The shape (N, 3, H, W)."""
        return torch.Size((len(self.index), *self.parts[0].shape[1:]))

    def take(self, indices: Tensor) -> Joined:
        """Return the images at `indices`, in that order; none is read."""
        return Joined(self.parts, self.index[indices.cpu()])

    def to(self, device: torch.device) -> Joined:
        """Return the same images, to be read to `device`."""
        return Joined([part.to(device) for part in self.parts], self.index)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self.index[index if isinstance(index, slice) else index.cpu()]
        found = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8, device=self.device)
        first = 0
        for part in self.parts:
            here = ((chosen >= first) & (chosen < first + part.shape[0])).nonzero().flatten()
            if len(here):
                found[here.to(self.device)] = part[(chosen[here] - first).to(self.device)].to(self.device)
            first += part.shape[0]
        return found

    def digest(self) -> str:
        """Return a SHA-256 of the digests of all parts, and of which images these are."""
        digest = hashlib.sha256(self.index.numpy().tobytes())
        for part in self.parts:
            digest.update(part.digest().encode() if isinstance(part, StoredPixels) else part.cpu().numpy().tobytes())
        return digest.hexdigest()


def files_state(paths: Sequence[str], more: str = "") -> str:
    """Return a SHA-256 over paths, sizes and modification times of files, and over a further text."""
    digest = hashlib.sha256(f"{more}\n".encode())
    for path in paths:
        state = Path(path).stat()
        digest.update(os.fsencode(path) + f" {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class UnreadableImage(DataProblem):
    """An image file that cannot be read: its path, the reason, and what to do with it."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{shown_path(path)} {reason}; {remedy}")
        self.path = path
        self.reason = reason


def shown_path(path: Path | str) -> str:
    """Return a path as UTF-8 text; bytes that are none become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_all(paths: Sequence[str], read: Callable[[str], Tensor]) -> Tensor:
    """Return the pixels of image files, read by all cores; DataProblem names all that cannot be read."""
    found = attempts(paths, read)
    raise_unreadable([each for each in found if isinstance(each, UnreadableImage)])
    return torch.stack([each for each in found if isinstance(each, Tensor)])


def attempts(paths: Sequence[str], read: Callable[[str], Tensor]) -> list[Tensor | UnreadableImage]:
    """Return for each image file its pixels, or why it cannot be read; all cores read."""

    def attempt(path: str) -> Tensor | UnreadableImage:
        try:
            return read(path)
        except UnreadableImage as error:
            return error

    # decoding and scaling release the interpreter's lock
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, paths))


def raise_unreadable(problems: Sequence[UnreadableImage]) -> None:
    """Raise DataProblem that names all images that cannot be read, if there are some."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = ", ".join(f"{shown_path(each.path)} ({each.reason})" for each in problems)
        raise DataProblem(f"{len(problems)} images cannot be read; replace or delete them: {listed}")


def open_rgb(file: Path) -> Image.Image:
    """Read an image file as upright RGB of 8 bits a channel; UnreadableImage when that cannot be done."""
    try:
        with Image.open(file) as image:
            mode, rgb = image.mode, to_rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableImage(file, "is no readable image", "replace or delete it") from error
    if mode.startswith(("I", "F")):  # conversion would clip, not scale
        raise UnreadableImage(file, "has more than 8 bits a channel", "convert it to 8 bits")
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB: turned as its EXIF orientation says, and transparency over `BACKGROUND`.

    Images without the tag and opaque ones are converted as Pillow converts them.
    """
    image.load()
    image = _upright(image)
    if not (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info):
        return image.convert("RGB")
    whole = image.convert("RGBA")
    if whole.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", whole.size, (*BACKGROUND, 255)), whole).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, ZeroDivisionError):
        pass  # tags that cannot be read turn nothing
    return image


def image_size(path: str) -> tuple[int, int]:
    """Return width and height of an upright image, of which only the header is read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in range(5, 9)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableImage(path, "is no readable image", "replace or delete it") from error
    return (height, width) if turned else (width, height)
