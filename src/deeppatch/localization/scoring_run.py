"""What all scoring methods share: the model, the degraded validation images, and the limits of the run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.data.views import View
from deeppatch.distributed import ranks
from deeppatch.graph.candidates import candidates
from deeppatch.localization.ablation import DegradedBatch
from deeppatch.zoo.classifier import network_of, normalize_of


@dataclass(frozen=True)
class ScoringRun:
    """A model, the images that its filters are scored on, and the limits of the run.

    Args:
        model: The model, in eval mode.
        images: The validation images, on the model's device.
        corruption: The degradation.
        batch_size: The largest number of images in a batch.
        memory: The memory in MiB for the feature maps of a batch.
        amp: Whether filters are scored in bfloat16.
        seed: The seed of the level of each image, for methods that read each image at one level.
        checkpoint: Where the state of an unfinished run is saved.
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
        """The network within the model, which reads normalised images."""
        return network_of(self.model)

    @cached_property
    def widths(self) -> dict[str, int]:
        """The number of filters of each convolution that can be ranked; UserError where there is none."""
        return {name: conv.out_channels for name, conv in candidates(self.network, self.example).items()}

    @property
    def example(self) -> Tensor:
        """Two normalised images (2, 3, H, W)."""
        return self.normalize(views.to_float(self.images.pixels[:2]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, 3, H, W) in [0, 1] for the network."""
        return normalize_of(self.model, pixels)

    def saver(self, state: Callable[[], dict[str, Any]]) -> Callable[[object], None]:
        """Return a function that saves what `state` returns in the checkpoint, at most once a second."""
        checkpoint = self.checkpoint
        return (lambda _state: None) if checkpoint is None else at_most_once_a_second(lambda: checkpoint.save(state()))

    def restore(self, take: Callable[[dict[str, Any]], object], **kinds: Any) -> None:
        """Let `take` have the state of an interrupted run from the checkpoint, if there is one, on every rank.

        StaleArtifact where its values are not of the `kinds` that `storage.is_of` takes, or `take` fails.
        """
        if (checkpoint := self.checkpoint) is None:
            return
        if (state := ranks.broadcast_from_rank0(lambda: checkpoint.load(**kinds))) is not None:
            with checkpoint.undamaged():
                take(state)

    def fitting_batch_size(self, bytes_per_image: int) -> int:
        """Return the number of images in a batch: the batch size, or as many as fit into the memory."""
        return max(1, min(self.batch_size, self.memory * 2**20 // bytes_per_image))

    def view(self, size: int, *, paired: bool) -> View:
        """Return each image at every level, or with `paired` at one random level."""
        if paired:
            return views.random_level_view(self.images, self.corruption, size, self.seed)
        return views.expand(self.images, self.corruption, size)

    @torch.no_grad()
    def batches(self, view: View, *, paired: bool) -> Iterator[DegradedBatch]:
        """Yield the normalised batches of a view, with `paired` together with the clean images."""
        clean = dataclasses.replace(view, levels=torch.zeros_like(view.levels))
        for (pixels, labels), (originals, _) in zip(view, clean, strict=True):
            yield DegradedBatch(self.normalize(pixels), labels, self.normalize(originals) if paired else None)


def at_most_once_a_second(save: Callable[[], object]) -> Callable[[object], None]:
    """Return a function that calls `save`, but not if it has called it within the last second."""
    last = -math.inf

    def save_if_due(_state: object) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            save()
            last = time.monotonic()

    return save_if_due
