"""Epochs of training batches, cut to a number of passes where budgets are compared, and the count of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from torch import nn

from deeppatch.artifacts import Stateful
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.errors import UserError


@dataclass(frozen=True)
class Passes:
    """How many images went through a network, each time that one did: the cost of a method.

    Args:
        train: Forward and backward passes of one image.
        forward: Passes of one image that are forward only.

    >>> Passes(train=100) + Passes(train=20, forward=7)
    Passes(train=120, forward=7)
    """

    train: int = 0
    forward: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.train + other.train, self.forward + other.forward)


class Epoch(Protocol):
    """An epoch of batches."""

    @property
    def sizes(self) -> list[int]:
        """The number of images in each whole batch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[views.Batch]: ...


class ShardedEpoch(Epoch, Protocol):
    """An epoch of which each rank can read its own shard of each batch."""

    def shard(self, index: int, count: int) -> ShardedEpoch:
        """Return the same batches of shard `index` (from 0) of `count` shards of each."""


@dataclass(frozen=True)
class FirstBatches:
    """The first `count` batches of an epoch."""

    epoch: ShardedEpoch
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def sizes(self) -> list[int]:
        """The number of images in each whole batch."""
        return self.epoch.sizes[: self.count]

    def __iter__(self) -> Iterator[views.Batch]:
        return islice(iter(self.epoch), self.count)

    def shard(self, index: int, count: int) -> FirstBatches:
        """Return the same batches of shard `index` (from 0) of `count` shards of each."""
        return FirstBatches(self.epoch.shard(index, count), self.count)


@dataclass(frozen=True)
class ChosenEpochs:
    """Epochs whose images depend on the network that is trained on them, or on nothing but the clean images.

    Args:
        epochs: The epochs, as many and as long as the plain ones.
        carried: What a checkpoint saves of them beside the network, or None.
        spent: Returns, after the training, what the choice has cost.
        facts: Returns, after the training, what there is to say of it.
    """

    epochs: Sequence[Epoch]
    carried: Stateful | None = None
    spent: Callable[[], Passes] = Passes
    facts: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class StreamInputs:
    """What a training stream reads to choose images.

    Args:
        network: The network that is trained on them, as it is when a batch is read.
        images: The training images, on the device of the network.
        corruption: Their degradation.
        plain: The epochs at random levels, in whose place the chosen ones stand.
        batch_size: The number of images in a batch.
        seed: The seed of all random choices.
        amp: Whether forward passes run in bfloat16.
    """

    network: nn.Module
    images: Images
    corruption: Corruption
    plain: Sequence[ShardedEpoch]
    batch_size: int
    seed: int
    amp: bool = False

    def shuffled(self, corruption: Corruption | None = None) -> Iterator[tuple[views.Shuffled, ShardedEpoch]]:
        """Yield for each plain epoch a whole one of all images, clean or degraded, and the plain one."""
        for number, plain in enumerate(self.plain):
            yield views.Shuffled(self.images, self.batch_size, self.seed, number, corruption=corruption), plain


# what chooses the images that a network is trained on, in place of those at random levels
TrainingStream = Callable[[StreamInputs], ChosenEpochs]


def clean_stream(inputs: StreamInputs) -> ChosenEpochs:
    """Choose clean images only, in epochs as long as the plain ones."""
    return ChosenEpochs([FirstBatches(whole, len(plain.sizes)) for whole, plain in inputs.shuffled()])


def clean_epochs(
    images: Images,
    *,
    epochs: int,
    batch_size: int = 256,
    seed: int = 2021,
    augment: bool = False,
    mirror: bool = True,
) -> list[views.Shuffled]:
    """Return `epochs` shuffled passes over clean images; with `augment` they are cropped, and mirrored if `mirror`."""
    return [views.Shuffled(images, batch_size, seed, epoch, augment=augment, mirror=mirror) for epoch in range(epochs)]


def degraded_epochs(
    images: Images,
    corruption: Corruption,
    *,
    epochs: int,
    passes: int | None = None,
    batch_size: int = 256,
    seed: int = 2021,
) -> list[ShardedEpoch]:
    """Return `epochs` shuffled passes, in which each image is clean with probability 1/2, else at a random level.

    With `passes` there are as many whole batches as that number of images allows, in as many epochs as that takes, and
    `epochs` is not read.
    """
    return within_budget(
        lambda epoch: views.Shuffled(images, batch_size, seed, epoch, corruption=corruption),
        epochs=epochs,
        passes=passes,
        batch_size=batch_size,
    )


def within_budget(
    whole: Callable[[int], ShardedEpoch], *, epochs: int, passes: int | None, batch_size: int
) -> list[ShardedEpoch]:
    """Return `epochs` epochs, each what `whole` returns for its number.

    With `passes` they have as many whole batches as that number of images allows, and `epochs` is not read.
    """
    if passes is None:
        return [whole(epoch) for epoch in range(epochs)]
    found: list[ShardedEpoch] = []
    while passes > 0:
        epoch = whole(len(found))
        images = sum(epoch.sizes)
        count = passes // batch_size if passes < images else len(epoch)
        found += [epoch] if count == len(epoch) else [FirstBatches(epoch, count)] if count else []
        passes -= images
    if not found:
        raise UserError(f"passes: give at least the {min(batch_size, sum(whole(0).sizes))} images of a batch")
    return found


def count_passes(epochs: Sequence[Epoch], validated: int = 0) -> Passes:
    """Return the passes of a training with `validated` images in each validation, one after each epoch.

    >>> import torch
    >>> from deeppatch.data.corruptions import GaussianBlur
    >>> images = Images(torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.long))
    >>> epochs = degraded_epochs(images, GaussianBlur((1.0,)), epochs=1, passes=50, batch_size=8)
    >>> [epoch.sizes for epoch in epochs]
    [[8, 8, 4], [8, 8, 4], [8]]
    >>> count_passes(epochs, validated=10)
    Passes(train=48, forward=30)
    """
    return Passes(sum(sum(epoch.sizes) for epoch in epochs), len(epochs) * validated)
