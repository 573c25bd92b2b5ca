"""Images that stay on disk and are decoded batch by batch, for data sets that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, pil_to_tensor, resize

from deeppatch.errors import DataProblem

# what shows through transparent pixels
BACKGROUND = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag


class Files:
    """Image files that can be indexed like a tensor of uint8 pixels (N, 3, S, S).

    An image is scaled (bilinear) so that its shorter side has `shorter` pixels, and its centre of `size` pixels cut.
    """

    def __init__(self, paths: Sequence[str], shorter: int, size: int, device: torch.device | str = "cpu") -> None:
        self.paths = paths
        self.shorter = shorter
        self.size = size
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """The shape (N, 3, S, S)."""
        return torch.Size((len(self.paths), 3, self.size, self.size))

    def take(self, indices: Tensor) -> Files:
        """Return the files at `indices`, in that order; none is read."""
        return Files([self.paths[index] for index in indices.tolist()], self.shorter, self.size, self.device)

    def to(self, device: torch.device) -> Files:
        """Return the same files, to be decoded to `device`."""
        return Files(self.paths, self.shorter, self.size, device)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self.paths[index] if isinstance(index, slice) else [self.paths[index] for index in index.tolist()]
        return read_all(chosen, self._decode).to(self.device)

    def _decode(self, path: str) -> Tensor:
        image = resize(open_rgb(Path(path)), [self.shorter], InterpolationMode.BILINEAR, antialias=True)
        return pil_to_tensor(center_crop(image, [self.size, self.size]))

    def digest(self) -> str:
        """Return a SHA-256 over paths, sizes and modification times of the files, and over the scaling."""
        digest = hashlib.sha256(f"{self.shorter} {self.size}\n".encode())
        for path in self.paths:
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

    def attempt(path: str) -> Tensor | UnreadableImage:
        try:
            return read(path)
        except UnreadableImage as error:
            return error

    # decoding and scaling release the interpreter's lock
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found = list(pool.map(attempt, paths))
    problems = [each for each in found if isinstance(each, UnreadableImage)]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = ", ".join(f"{shown_path(each.path)} ({each.reason})" for each in problems)
        raise DataProblem(f"{len(problems)} images cannot be read; replace or delete them: {listed}")
    return torch.stack([each for each in found if isinstance(each, Tensor)])


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


def open_resized(file: Path, size: int) -> Tensor:
    """Read an image file as uint8 pixels (3, size, size), resized (bilinear) where it has another size."""
    return scaled(open_rgb(file), size)


def scaled(rgb: Image.Image, size: int) -> Tensor:
    """Return an RGB image as uint8 pixels (3, size, size), resized (bilinear) where it has another size."""
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)


def read_resized(paths: Sequence[str], size: int) -> Tensor:
    """Read image files as uint8 pixels (N, 3, size, size); DataProblem names all that cannot be read."""
    return read_all(paths, lambda path: open_resized(Path(path), size))
