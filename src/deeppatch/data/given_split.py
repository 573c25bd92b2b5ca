"""A class-biased split that somebody else has drawn: which images of the two slices are train and val, from a file."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeppatch.errors import DataProblem

PARTS = ("train", "val")
# what NumPy raises for files that are no archives, are cut off, or are compressed in a way that it does not know
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, OSError, NotImplementedError)


@dataclass(frozen=True)
class GivenSplit:
    """The images that train and val have: their indices, int64 (N,), within the slice of each (see `biased_split`).

    `origin` is the file, and `bias` the class bias by which they were drawn; both are for messages.
    """

    train: Tensor
    val: Tensor
    bias: str
    origin: Path

    def choose(self, name: str, images: Tensor) -> Tensor:
        """Return the chosen ones of a slice's images (N,), in ascending order; DataProblem when it is too short."""
        chosen: Tensor = getattr(self, name)
        if int(chosen.max()) >= len(images):
            raise DataProblem(
                f"{self.origin}: {self.bias}_{name} has index {int(chosen.max())}, and the slice for {name} has "
                f"{len(images)} images; give indices from 0 to {len(images) - 1}, for this data set"
            )
        return images[chosen].sort().values


def given_split(content: bytes, bias: str, origin: Path) -> GivenSplit:
    """Read the split of a class bias from a .npz file, which has for each bias the arrays BIAS_train and BIAS_val.

    Args:
        content: The content of the file.
        bias: The class bias: A, B or C.
        origin: The file, for messages.

    Raises:
        DataProblem: In one line, when the file is damaged or has no such arrays, or when they are no lists of
            different indices from 0.

    >>> file = io.BytesIO()
    >>> np.savez(file, A_train=[4, 0, 2], A_val=[1])
    >>> given_split(file.getvalue(), "A", Path("splits.npz")).train
    tensor([4, 0, 2])
    """
    try:
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        names = list(stored) if isinstance(stored, np.lib.npyio.NpzFile) else []
        arrays = {name: stored[f"{bias}_{name}"] for name in PARTS if f"{bias}_{name}" in names}
    except DAMAGE as error:
        raise DataProblem(f"{origin} is damaged, or no .npz file of numbers; get it again") from error
    for name in PARTS:
        if name not in arrays:
            held = f"its arrays are {', '.join(names[:6])}" if names else "it has no arrays with names"
            raise DataProblem(
                f"{origin} has no {bias}_{name}: {held}; give a .npz file with {bias}_train and {bias}_val"
            )
    train, val = (_indices(arrays[name], f"{origin}: {bias}_{name}") for name in PARTS)
    return GivenSplit(train, val, bias, origin)


def _indices(array: NDArray[np.generic], name: str) -> Tensor:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array):
        raise DataProblem(f"{name} is {array.dtype} {array.shape}; give a list of whole numbers, (N,)")
    found = torch.from_numpy(array.astype(np.int64))
    if int(found.min()) < 0:
        raise DataProblem(f"{name} has index {int(found.min())}; give indices from 0")
    values, counts = found.unique(return_counts=True)
    if int(counts.max()) > 1:
        twice = int(values[counts.argmax()])
        raise DataProblem(f"{name} has index {twice} {int(counts.max())} times; give each image once")
    return found
