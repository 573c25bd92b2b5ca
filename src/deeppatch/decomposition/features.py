"""The penultimate features of labelled images, and batches of them to train a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.cache import ContentCache
from deeppatch.data.dataset import Data
from deeppatch.data.views import augmented, to_float
from deeppatch.errors import UserError
from deeppatch.features import last_linear, penultimate


@dataclass(frozen=True)
class Features:
    """Penultimate features of labelled images: `values` float32 (N, D), `labels` int64 (N,)."""

    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ShuffledFeatures:
    """One epoch of training batches (values, labels); the order depends on `seed` and `epoch` only."""

    features: Features
    batch_size: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = runtime.generator(self.seed, "features", self.epoch)
        order = torch.randperm(len(self.features), generator=generator).to(self.features.labels.device)
        for index in order.split(self.batch_size):
            yield self.features.values[index], self.features.labels[index]


@dataclass
class LastLayer:
    """The last linear layer of a classifier, and its input features for the images of a data set.

    `model` maps float pixels (N, 3, H, W) in [0, 1] to logits (N, C), C being the number of the data's classes. With
    a `cache` features are computed once, without one at every call.
    """

    model: nn.Module
    data: Data
    batch_size: int = 256
    amp: bool = False
    cache: ContentCache | None = None

    @cached_property
    def _name_and_layer(self) -> tuple[str, nn.Linear]:
        example = self.data.val.pixels[:2].to(next(self.model.parameters()).device)
        name, layer = last_linear(self.model, to_float(example))
        if layer.out_features != len(self.data.classes):
            raise UserError(f"the network has {layer.out_features} classes, the data have {len(self.data.classes)}")
        return name, layer

    @property
    def name(self) -> str:
        """The name of the layer within the model."""
        return self._name_and_layer[0]

    @property
    def layer(self) -> nn.Linear:
        """The layer itself."""
        return self._name_and_layer[1]

    def features(self, part: str, *, augment_seed: int | None = None) -> Features:
        """Return the features of `train`, `val` or `test`, on the model's device.

        With `augment_seed` every image is cropped once as in training, and mirrored if the data allow it.
        """
        assert self.name, "fails early if there is no such layer"
        images = getattr(self.data, part)
        if augment_seed is not None:
            images = augmented(images, augment_seed, mirror=self.data.mirror)
        values = penultimate(
            self.model,
            images.pixels,
            batch_size=self.batch_size,
            amp=self.amp,
            label=f"features of {part}",
            cache=self.cache,
        )
        return Features(values, images.labels.to(values.device))

    def training_features(self, *, augment_seed: int | None = None) -> Features:
        """Return the features of all training images: train, then val."""
        parts = [self.features(part, augment_seed=augment_seed) for part in ("train", "val")]
        return Features(torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts]))
