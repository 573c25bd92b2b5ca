"""What every method of scoring shares: the model, the degraded validation images, and the limits of the run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.data.views import View
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ablation import DegradedBatch
from deeppatch.zoo.classifier import network_of, normalize_of


@dataclass(frozen=True)
class ScoringRun:
    """A model in eval mode, the images on its device that its filters are scored on, and the limits of the run.

    `batch_size` is the largest number of images at a time, `memory` the MiB that their maps may take. With `amp`
    filters are scored in bfloat16. `checkpoint` keeps the state of an unfinished run.
    """

    model: nn.Module
    images: Images
    corruption: Corruption
    batch_size: int = 256
    memory: int = 2048
    amp: bool = False
    seed: int = 2021
    checkpoint: Checkpoint | None = None

    @property
    def network(self) -> nn.Module:
        """The network whose filters are scored; it reads normalised images."""
        return network_of(self.model)

    @property
    def widths(self) -> dict[str, int]:
        """The number of filters of each convolution."""
        return {name: conv.out_channels for name, conv in convolutions(self.network).items()}

    @property
    def example(self) -> Tensor:
        """Two normalised images (2, 3, H, W)."""
        return self.normalize(views.to_float(self.images.pixels[:2]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, 3, H, W) in [0, 1] as the network reads them."""
        return normalize_of(self.model, pixels)

    def saver(self, state: Callable[[], dict[str, Any]]) -> Callable[[object], None]:
        """Return a function that keeps what `state` returns in the checkpoint, at most once a second."""
        checkpoint = self.checkpoint
        return (lambda _state: None) if checkpoint is None else every_second(lambda: checkpoint.save(state()))

    def saved(self) -> dict[str, Any] | None:
        """Return the state that an interrupted run left in the checkpoint, on every rank, or None."""
        return None if self.checkpoint is None else ranks.broadcast_from_rank0(self.checkpoint.load)

    def images_at_a_time(self, bytes_an_image: int) -> int:
        """Return the batch size, or fewer images where the memory does not hold their maps."""
        return max(1, min(self.batch_size, self.memory * 2**20 // bytes_an_image))

    def view(self, size: int, *, paired: bool) -> View:
        """Return every image at every level, or, `paired` with its clean version, at one level drawn by the seed."""
        if paired:
            return views.degraded_draw(self.images, self.corruption, size, self.seed)
        return views.expand(self.images, self.corruption, size)

    @torch.no_grad()
    def batches(self, view: View, *, paired: bool) -> Iterator[DegradedBatch]:
        """Yield the batches of a view, normalised; `paired` ones have the clean images too."""
        clean = dataclasses.replace(view, levels=torch.zeros_like(view.levels))
        for (pixels, labels), (originals, _) in zip(view, clean, strict=True):
            yield DegradedBatch(self.normalize(pixels), labels, self.normalize(originals) if paired else None)


def every_second(save: Callable[[], object]) -> Callable[[object], None]:
    """Return a function that calls `save` unless it has done so within the last second."""
    last = -math.inf

    def keep(_state: object) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            save()
            last = time.monotonic()

    return keep
