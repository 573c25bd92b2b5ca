"""What decomposing reads: the base model, the name of its last layer, and the pooled features of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.cli.predecessors import base_model
from deeppatch.data.views import augmented
from deeppatch.decompose import features, head
from deeppatch.decompose.features import Features
from deeppatch.metrics import accuracy
from deeppatch.zoo.classifier import Classifier


@dataclass
class Subject:
    """A classifier that ends in one linear layer, called `head`."""

    context: Context
    model: Classifier

    @cached_property
    def head(self) -> str:
        """The name of the last layer within the classifier."""
        return head.final_layer(self.model, self.context.example)

    @property
    def whole(self) -> nn.Linear:
        """The last layer itself."""
        layer = self.model.get_submodule(self.head)
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, part: str, *, augment: bool = False) -> Features:
        """Return the pooled features of `train`, `val` or `test`, computed unless they are kept under features/."""
        options = self.context.options
        images = getattr(self.context.splits, part)
        images = augmented(images, options.seed, mirror=self.context.source.mirror) if augment else images
        cache = model_folder(options) / "features"
        label = f"features of {part}"
        return features.pooled(
            self.model, self.head, images, cache, batch_size=options.batch_size, amp=options.amp, label=label
        )

    def training_features(self, *, augment: bool = False) -> Features:
        """Return those of all training images: train, then val; as they are, or cropped and mirrored once."""
        parts = [self.features(part, augment=augment) for part in ("train", "val")]
        return Features(torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts]))


def head_accuracy(features: Features) -> Callable[[nn.Module], float]:
    """Return the function that measures a head's accuracy, in [0, 1], on features."""

    @torch.no_grad()
    def measured(head: nn.Module) -> float:
        return accuracy(head(features.values).argmax(1), features.labels)

    return measured


def subject(context: Context) -> Subject:
    """Return what pretrain left, or --weights, ready to be decomposed."""
    return Subject(context, base_model(context))
