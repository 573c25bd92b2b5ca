"""Under-fitted states: those of the epoch at half of what turns out to be the best."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.storage import write_bytes
from deeppatch.training import History


class Halfway:
    """Keep in a folder the state of every epoch that may yet be the one at half of the best, a quarter at most.

    Epochs count from 0. After a kill the folder holds what the training needs to go on.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs

    def keep(self, model: nn.Module, history: History) -> None:
        """Write the state of the epoch that has ended if it may be asked for, and delete those that cannot any more."""
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
