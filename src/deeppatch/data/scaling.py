"""Scale images of any size to one size: keep the aspect and cut the centre, or squash."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, pil_to_tensor, resize

from deeppatch.data.files import Files, StoredPixels, UnreadableImage, image_size
from deeppatch.errors import DataProblem


@dataclass(frozen=True)
class Scaling:
    """How an image becomes `height` x `width` pixels (bilinear, with antialiasing).

    With `squash` it is resized to that; else its shorter side is scaled to `shorter` (default: that of the result), and
    the centre is cut.
    """

    height: int
    width: int
    squash: bool = False
    shorter: int | None = None

    def __call__(self, rgb: Image.Image) -> Tensor:
        """Return an RGB image as uint8 pixels (3, height, width)."""
        if rgb.size == (self.width, self.height) and self.shorter is None:
            return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)
        if self.squash:
            rgb = rgb.resize((self.width, self.height), Image.Resampling.BILINEAR)
        else:
            rgb = resize(rgb, [self._scaled_side(rgb)], InterpolationMode.BILINEAR, antialias=True)
            rgb = center_crop(rgb, [self.height, self.width])
        return pil_to_tensor(rgb)

    def _scaled_side(self, rgb: Image.Image) -> int:
        """Return the length of the shorter side after scaling, so that the image covers the cut."""
        if self.shorter is not None:
            return self.shorter
        width, height = rgb.size
        return round(min(width, height) * max(self.width / width, self.height / height))

    @property
    def name(self) -> str:
        """Everything that changes the pixels, in a line."""
        return f"{self.height}x{self.width} {'squash' if self.squash else 'crop'} {self.shorter}"


@dataclass(frozen=True)
class Sizing:
    """Which size images get: `size` where it is given, for image files else `default`, else their own.

    `cache` is the folder in which large sets of image files are kept decoded; without one they are held in memory.
    """

    size: int | None = None
    squash: bool = False
    default: int | None = None
    cache: Path | None = None

    def of_files(self, paths: Sequence[str], folder: Path) -> Scaling:
        """Return the scaling of image files."""
        size = self.size or self.default
        return own_scaling(paths, folder) if size is None else square(size, squash=self.squash)

    def in_memory(self, pixels: Tensor) -> Tensor:
        """Scale pixels in memory where a size is given."""
        return pixels if self.size is None else scaled_tensors(pixels, square(self.size, squash=self.squash))


def square(size: int, *, squash: bool = False) -> Scaling:
    """Return the scaling to `size` x `size` pixels."""
    return Scaling(size, size, squash)


def like(pixels: Tensor | StoredPixels) -> Scaling:
    """Return the scaling that gives further files the size of these images (N, 3, H, W), as these were given it."""
    if isinstance(pixels, Files) and isinstance(pixels.scaling, Scaling):
        return pixels.scaling
    height, width = pixels.shape[-2:]
    return Scaling(height, width)


def scaled_tensors(pixels: Tensor, scaling: Scaling) -> Tensor:
    """Scale uint8 pixels (N, 3, H, W) in memory as `Scaling` scales files: (N, 3, height, width)."""
    height, width = pixels.shape[-2:]
    if (height, width) == (scaling.height, scaling.width):
        return pixels
    target = [scaling.height, scaling.width]
    if scaling.squash or height * scaling.width == width * scaling.height:
        return resize(pixels, target, InterpolationMode.BILINEAR, antialias=True)
    side = round(min(height, width) * max(scaling.width / width, scaling.height / height))
    return center_crop(resize(pixels, [side], InterpolationMode.BILINEAR, antialias=True), target)


def own_scaling(paths: Sequence[str], folder: Path) -> Scaling:
    """Return the scaling that leaves images as they are; DataProblem where they are not all of one size."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        with contextlib.suppress(UnreadableImage):  # all of these are named when the images are read
            sizes[image_size(path)] += 1
    if not sizes:
        return Scaling(1, 1)
    if len(sizes) > 1:
        common = ", ".join(f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(3))
        common += ", ..." if len(sizes) > 3 else ""
        raise DataProblem(
            f"{folder}: images have {len(sizes)} sizes ({common}), and the model does not say which it reads; give "
            "--image_size N"
        )
    (width, height), _ = sizes.popitem()
    return Scaling(height, width)
