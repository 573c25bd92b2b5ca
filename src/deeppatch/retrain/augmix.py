"""Fine-tune on clean images and on mixtures of simple operations, with equal answers to all (AugMix)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data import augmix as mixtures
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Epoch, Passes, within_budget
from deeppatch.data.views import Batch, Shuffled
from deeppatch.errors import UserError
from deeppatch.retrain.finetune import Training, prepared
from deeppatch.retrain.whole import train_whole
from deeppatch.training import Loss, SGDSettings, cross_entropy

VIEWS, WIDTH = 2, 3
SMALLEST = 1e-7


def augmix(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    augmix_weight: float = 12.0,
    augmix_blur: bool = False,
    augment: bool = True,
    nesterov: bool = True,
    epochs: int = 20,
    passes: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune a network with the loss of AugMix, on clean images: it does not know the degradation.

    The loss is the cross entropy on the images plus `augmix_weight` times the Jensen-Shannon divergence of the answers
    to an image and to two mixtures of it, each with three chains of one to three operations (AugMix: Hendrycks et al.,
    ICLR 2020, arXiv 1912.02781, section 3).

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation, for val, and with `augmix_blur` for training.
        augmix_weight: The weight of the divergence; with 0 there are no mixtures.
        augmix_blur: Whether the images are those that `finetune` trains on, clean or degraded, instead of clean ones.
        augment: Whether clean images are cropped and mirrored at random, where the data say that they keep their class.
        nesterov: Whether SGD has Nesterov's momentum.
        epochs: The number of passes over `train`; each reads an image three times.
        passes: The number of images to train on, each time that one is, mixtures included, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time, mixtures not included.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, of crops, levels and mixtures, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history`, `passes` and `stored_bytes`.

    Raises:
        UserError: When the weight is negative, the model does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> augmix(model, data, GaussianBlur((1.0, 2.0)), epochs=2).passes
        Passes(train=48, forward=48)
    """
    if not 0 <= augmix_weight < math.inf:
        raise UserError(f"augmix_weight={augmix_weight}: give 0 or more")
    settings = SGDSettings(lr, momentum, weight_decay, nesterov and momentum > 0)
    copies = 1 + VIEWS if augmix_weight else 1
    training = Training(epochs, passes, settings, batch_size, amp, seed, reseed, checkpoint)
    data, degrade = prepared(model, data, corruption, training)

    def whole(epoch: int) -> Shuffled:
        if augmix_blur:
            return Shuffled(data.train, batch_size, seed, epoch, corruption=degrade)
        cropped = augment and data.crop
        return Shuffled(data.train, batch_size, seed, epoch, augment=cropped, mirror=data.mirror)

    smallest = copies * min(batch_size, len(data.train))
    if passes is not None and passes < smallest:
        raise UserError(f"passes={passes}: give at least {smallest}, for a batch of images with two mixtures each")
    in_images = None if passes is None else passes // copies
    plain = within_budget(whole, epochs=epochs, passes=in_images, batch_size=batch_size)
    batches: Sequence[Epoch] = plain
    if augmix_weight:
        batches = [Mixed(each, seed, number) for number, each in enumerate(plain)]
    images = sum(sum(each.sizes) for each in batches)
    return train_whole(
        copy.deepcopy(model),
        model,
        data,
        degrade,
        batches,
        training,
        label="augmix",
        loss=mixed_loss(augmix_weight) if augmix_weight else cross_entropy,
        spent=lambda: Passes(train=(copies - 1) * images),
    )


@dataclass(frozen=True)
class Mixed:
    """The batches of an epoch with two mixtures of each image, float (N, 3, 3, H, W); index 0 is the image itself.

    Images are rounded to 8 bits before operations are applied. The batches are whole ones: each of several ranks draws
    the mixtures of all images of a batch, and takes its own part.
    """

    epoch: Epoch
    seed: int
    number: int

    def __len__(self) -> int:
        return len(self.epoch)

    @property
    def sizes(self) -> list[int]:
        """The number of images in each whole batch."""
        return self.epoch.sizes

    def __iter__(self) -> Iterator[Batch]:
        for place, (pixels, labels) in enumerate(self.epoch):
            generator = runtime.generator(self.seed, "augmix", self.number, place)
            found = mixtures.views((pixels * 255).round().to(torch.uint8), VIEWS, generator, width=WIDTH)
            found[:, 0] = pixels
            yield found, labels


def mixed_loss(weight: float) -> Loss:
    """Return the loss of AugMix for batches of images with their mixtures, (N, 3, 3, H, W), and labels (N,).

    All are in one forward pass, so that normalisations use the statistics of all of them.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        pixels, labels = batch
        logits = model(pixels.transpose(0, 1).flatten(0, 1)).float().unflatten(0, (1 + VIEWS, len(labels)))
        return F.cross_entropy(logits[0], labels) + weight * jensen_shannon(logits.softmax(2)).mean()

    return loss


def jensen_shannon(probabilities: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of K distributions, (K, N, C), for each of N images, (N,).

    It is the mean over k of KL(p_k || M), where M is the mean of the distributions, clamped to [1e-7, 1] before its
    logarithm (AugMix, section 3.2): 0 where all are equal, at most ln K.

    >>> jensen_shannon(torch.eye(3).view(3, 1, 3)), math.log(3)
    (tensor([1.0986]), 1.0986122886681098)
    """
    mean = probabilities.mean(0).clamp(SMALLEST, 1).log()
    return F.kl_div(mean.expand_as(probabilities), probabilities, reduction="none").sum(2).mean(0)
