"""SVHN (house numbers) and GTSRB (traffic signs) as torchvision downloads them, as uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import GTSRB, SVHN

from deeppatch.data.files import Files
from deeppatch.data.scaling import square

PixelsAndLabels = tuple[Tensor, Tensor]


def svhn(data_dir: Path, size: int) -> list[PixelsAndLabels]:
    """Return pixels (N, 3, 32, 32) and labels (N,) of 73,257 training and 26,032 test images, without `extra`."""
    parts = [load_or_download(partial(SVHN, str(data_dir / "svhn"), name)) for name in ("train", "test")]
    return [(torch.from_numpy(part.data), torch.from_numpy(part.labels).long()) for part in parts]


def gtsrb(data_dir: Path, size: int) -> list[PixelsAndLabels]:
    """Return pixels (N, 3, S, S), resized, and labels (N,) of 26,640 training and 12,630 test images in 43 classes.

    The training images are tracks of 30 frames of the same sign. Random splits (as HybridRepair's) share signs, so
    accuracy on a part of them is too optimistic.
    """
    parts = []
    for name in ("train", "test"):
        part = load_or_download(partial(GTSRB, str(data_dir), name))
        pixels = Files([str(file) for file, _label in part._samples], square(size, squash=True))[:]
        parts.append((pixels, torch.tensor([label for _file, label in part._samples])))
    return parts


def load_or_download(make: Callable[..., Any]) -> Any:
    """Load a data set of torchvision from its files, or download it; `make` takes the argument `download`."""
    try:
        return make(download=False)
    except RuntimeError:  # torchvision raises this for absent and for damaged files
        return make(download=True)
