"""Decoded images in a memory-mapped file: decoded once, by all cores, and read from there by every later run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeppatch.data.digest import contents_digest
from deeppatch.data.files import Files, StoredPixels, UnreadableImage, attempts, raise_unreadable
from deeppatch.errors import DataProblem
from deeppatch.progress import info, track
from deeppatch.storage import unique_name

# more than this many bytes of pixels are not held in memory
LARGE = 2**28
CHUNK = 256


class Mapped(StoredPixels):
    """Images in a .npy file of uint8 pixels (N, 3, H, W), which is mapped into memory; `index` chooses some of them.

    `key` is a hash of what the file was decoded from.
    """

    def __init__(self, path: Path, key: str, index: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.key = key
        self._pixels = np.load(path, mmap_mode="r")
        self.index = torch.arange(len(self._pixels)) if index is None else index
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """The shape (N, 3, H, W)."""
        return torch.Size((len(self.index), *self._pixels.shape[1:]))

    def take(self, indices: Tensor) -> Mapped:
        """Return the images at `indices`, in that order; none is read."""
        return Mapped(self.path, self.key, self.index[indices.cpu()], self.device)

    def to(self, device: torch.device) -> Mapped:
        """Return the same images, to be read to `device`."""
        return Mapped(self.path, self.key, self.index, device)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        chosen = self.index[index if isinstance(index, slice) else index.cpu()]
        return torch.from_numpy(self._pixels[chosen.numpy()]).to(self.device)

    def digest(self) -> str:
        """Return a SHA-256 of what the images were decoded from, and of which of them these are."""
        return hashlib.sha256(f"{self.key}\n".encode() + self.index.numpy().tobytes()).hexdigest()


def decoded(files: Files, cache: Path | None) -> Tensor | Mapped:
    """Decode image files: into memory, or where they are many, into a file under `cache` that is kept.

    The file's name is a hash of the contents and names of the images, and of the scaling, so that it is decoded again
    only where one of these has changed. Raises DataProblem, which names all images that cannot be read.
    """
    shape = tuple(files.shape)
    if cache is None or np.prod(shape) <= LARGE:
        return files[:]
    key = hashlib.sha256(f"{contents_digest(files.paths, cache)} {files.scaling.name}".encode()).hexdigest()
    path = cache / f"pixels-{key[:16]}.npy"
    if not _is_whole(path, shape):
        info(f"decoding {shape[0]} images to {shape[3]}x{shape[2]} pixels, once: {path}")
        _write(path, shape, files)
    return Mapped(path, key)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Tell whether a file holds decoded images of a shape: one that was cut, or is none, is decoded again."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return pixels.shape == shape and pixels.dtype == np.uint8


def _write(path: Path, shape: tuple[int, ...], files: Files) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(unique_name(path.name))
    try:
        with _reserved(unfinished, shape) as pixels:
            problems: list[UnreadableImage] = []
            starts = range(0, shape[0], CHUNK)
            for start in track(starts, len(starts), "decoding"):
                for offset, found in enumerate(attempts(files.paths[start : start + CHUNK], files.decode)):
                    if isinstance(found, UnreadableImage):
                        problems.append(found)
                    elif not problems:
                        pixels[start + offset] = found.numpy()
            raise_unreadable(problems)
        unfinished.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = np.prod(shape) / 2**30
        raise DataProblem(
            f"{path.parent} has no room for {size:.1f} GiB of decoded images; free some, choose another --output_dir, "
            "or a smaller --image_size"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _reserved(path: Path, shape: tuple[int, ...]) -> Iterator[np.memmap]:
    """Yield a new mapped file whose blocks are reserved: on a full disk, writing to others would kill the process."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        yield pixels
        pixels.flush()
        os.fsync(file.fileno())
