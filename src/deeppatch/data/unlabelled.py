"""Read unlabelled images from a folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from deeppatch.data.files import open_resized
from deeppatch.errors import DataProblem


def read_unlabelled(folder: Path, size: int) -> tuple[list[str], Tensor]:
    """Return the names of all images under a folder, sorted and relative to it, and their pixels (N, 3, size, size).

    Images become RGB of 8 bits; DataProblem when the folder is missing or has none, or where one cannot be read.
    """
    if not folder.is_dir():
        raise DataProblem(
            f"{folder} is missing; put the images to choose from there, or give --bias to simulate on a labelled set"
        )
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())
    if not files:
        raise DataProblem(f"{folder} holds no image ({', '.join(IMG_EXTENSIONS)}); put those to choose from there")
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        pixels = list(threads.map(partial(open_resized, size=size), files))
    return [file.relative_to(folder).as_posix() for file in files], torch.stack(pixels)
