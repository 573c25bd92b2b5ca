"""STL-10 in the files of its own page: 5,000 training and 8,000 test images of 96x96 pixels in ten classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeppatch.errors import DataProblem

SIDE = 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FILES = tuple(f"{part}_{kind}.bin" for part in ("train", "test") for kind in ("X", "y"))
FOLDERS = ("stl10", "stl10/stl10_binary", "stl10_binary")
WHAT_TO_DO = (
    "get stl10_binary.tar.gz from the data set's own page (cs.stanford.edu/~acoates/stl10) and unpack it, so that "
    "{place} holds " + ", ".join(FILES)
)


def stl10(data_dir: Path) -> list[tuple[Tensor, Tensor]]:
    """Return pixels (N, 3, 96, 96) and labels (N,) of the training and of the test images, without the unlabelled ones.

    Raises:
        DataProblem: When the files are absent or damaged, with what to download and where it goes.
    """
    place = data_dir / "stl10_binary"
    advice = WHAT_TO_DO.format(place=place)
    folders = [data_dir / name for name in FOLDERS]
    folder = next((each for each in folders if any((each / name).exists() for name in FILES)), None)
    if folder is None:
        raise DataProblem(f"stl10: its files are not in {data_dir}; {advice}")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise DataProblem(f"stl10: {folder} has no {', '.join(missing)}; {advice}")
    return [_part(folder, part, advice) for part in ("train", "test")]


def _part(folder: Path, name: str, advice: str) -> tuple[Tensor, Tensor]:
    """Read one part: each image is its three channels, column by column, and classes are counted from 1."""
    values, numbers = (np.fromfile(folder / f"{name}_{kind}.bin", np.uint8) for kind in ("X", "y"))
    whole = len(values) == len(numbers) * 3 * SIDE * SIDE
    if not whole or not len(numbers) or not 1 <= numbers.min() <= numbers.max() <= len(CLASSES):
        raise DataProblem(f"stl10: {folder / name}_X.bin and {name}_y.bin are damaged or cut off; {advice}")
    pixels = torch.from_numpy(values).view(-1, 3, SIDE, SIDE).transpose(2, 3).contiguous()
    return pixels, torch.from_numpy(numbers).long() - 1
