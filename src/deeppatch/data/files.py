"""Images that stay on disk and are decoded batch by batch, for data sets that do not fit into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, pil_to_tensor, resize

from deeppatch.errors import DataProblem


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
        # decoding and scaling release the interpreter's lock
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(self._decode, chosen))).to(self.device)

    def _decode(self, path: str) -> Tensor:
        image = resize(open_rgb(Path(path)), [self.shorter], InterpolationMode.BILINEAR, antialias=True)
        return pil_to_tensor(center_crop(image, [self.size, self.size]))

    def digest(self) -> str:
        """Return a SHA-256 over paths, sizes and modification times of the files, and over the scaling."""
        digest = hashlib.sha256(f"{self.shorter} {self.size}\n".encode())
        for path in self.paths:
            state = Path(path).stat()
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def open_rgb(file: Path) -> Image.Image:
    """Read an image file as RGB of 8 bits a channel; DataProblem when that cannot be done."""
    try:
        with Image.open(file) as image:
            mode, rgb = image.mode, image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataProblem(f"{file} is no readable image; replace or delete it") from error
    if mode.startswith(("I", "F")):  # conversion would clip, not scale
        raise DataProblem(f"{file} has more than 8 bits a channel; convert it to 8 bits")
    return rgb


def open_resized(file: Path, size: int) -> Tensor:
    """Read an image file as uint8 pixels (3, size, size), resized (bilinear) where it has another size."""
    rgb = open_rgb(file)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)
