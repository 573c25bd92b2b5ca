"""Signs and numbers from the street: GTSRB and SVHN as torchvision downloads them, as uint8 tensors of 32x32 pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import GTSRB, SVHN

from deeppatch.data.files import open_resized

PixelsAndLabels = tuple[Tensor, Tensor]


def svhn(data_dir: Path, size: int) -> list[PixelsAndLabels]:
    """Return pixels (N, 3, 32, 32) and labels (N,) of the 73,257 training and the 26,032 test images; no extra ones."""
    parts = [load_or_download(partial(SVHN, str(data_dir / "svhn"), name)) for name in ("train", "test")]
    return [(torch.from_numpy(part.data), torch.from_numpy(part.labels).long()) for part in parts]


def gtsrb(data_dir: Path, size: int) -> list[PixelsAndLabels]:
    """Return pixels (N, 3, S, S), resized, and labels (N,) of 26,640 training and 12,630 test images in 43 classes.

    The training images are frames of tracks, 30 of each sign: parts of a random cut share signs, and what is measured
    on one of them flatters (HybridRepair cuts so).
    """
    found = []
    for name in ("train", "test"):
        part = load_or_download(partial(GTSRB, str(data_dir), name))
        pixels = torch.stack([open_resized(Path(file), size) for file, _label in part._samples])
        found.append((pixels, torch.tensor([label for _file, label in part._samples])))
    return found


def load_or_download(make: Callable[..., Any]) -> Any:
    """Return a data set of torchvision from its files, or else downloaded; `make` takes the argument `download`."""
    try:
        return make(download=False)
    except RuntimeError:  # torchvision's answer to absent and to damaged files alike
        return make(download=True)
