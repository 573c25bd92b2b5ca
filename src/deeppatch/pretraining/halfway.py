"""Keep the under-fitted state of a training: that at half of the best epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.storage import write_bytes
from deeppatch.training import History


class Halfway:
    """Keeps the states of all epochs that may become the one at half of the best epoch: at most a quarter of them.

    Epochs count from 0. After an interruption the folder has all states that the resumed training needs.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs

    def keep(self, model: nn.Module, history: History) -> None:
        """Write the state of the finished epoch if it may be needed, and delete those that are no longer needed."""
        done = len(history.loss)
        needed = {history.best // 2, *(epoch // 2 for epoch in range(done, self.epochs))}
        if done - 1 in needed:
            write_bytes(self._path(done - 1), tensors_to_bytes(model.state_dict()))
        for path in self.folder.glob("*.safetensors"):
            if int(path.stem) not in needed or int(path.stem) >= done:
                path.unlink()

    def state(self, history: History) -> bytes:
        """Return the state at half of the best epoch, as the bytes of a weights file (Qi et al., ASE 2022)."""
        return self._path(history.best // 2).read_bytes()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:03}.safetensors"
