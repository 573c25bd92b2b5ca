"""The data of semi-supervised repair: labelled images, and a pool of which some labels are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.errors import check_between, check_counts, check_positive
from deeppatch.hybrid.selection import UNKNOWN, Selection


@dataclass(frozen=True)
class Recipe:
    """The constants of HybridRepair's training (Li, Chen and Xu, ISSTA 2022), by default those of its authors.

    Args:
        batch: The number of images in a batch.
        smoothing: The amount of label smoothing.
        temperature: The temperature by which pseudo-labels are sharpened.
        alpha: The parameter of the Beta distribution of mixup.
        weight: The weight lambda of the loss on pseudo-labels.
        ramp: The number of epochs over which this weight grows linearly from 0.
        steps: The largest number of batches of a phase (default: unlimited).
    """

    batch: int = 64
    smoothing: float = 0.1
    temperature: float = 0.5
    alpha: float = 0.75
    weight: float = 100.0
    ramp: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError when a number is out of range."""
        check_counts(batch=self.batch, **({} if self.steps is None else {"steps": self.steps}))
        check_positive(temperature=self.temperature, alpha=self.alpha)
        check_between(0, 1, smoothing=self.smoothing)
        check_between(0, math.inf, weight=self.weight, ramp=self.ramp)

    def capped(self, steps: int) -> int:
        """Limit the number of batches of a phase; at least 1 is returned."""
        return max(1, steps if self.steps is None else min(steps, self.steps))


@dataclass(frozen=True)
class RepairSettings:
    """The settings of a repair with SGD at a constant learning rate, by default those of HybridRepair's authors."""

    epochs: int = 10
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 2021
    amp: bool = False

    def __post_init__(self) -> None:
        """Raise UserError when a number is out of range."""
        check_counts(epochs=self.epochs)
        check_positive(lr=self.lr)
        check_between(0, 1, momentum=self.momentum)
        check_between(0, math.inf, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class SemiSupervisedData:
    """Labelled training images, and a pool of which some labels are known.

    Args:
        train: The training images.
        pool: The pixels of the pool, uint8 (N, 3, H, W).
        known: Bought and propagated labels of the pool, int64 (N,), UNKNOWN where there is none.
        weights: How likely an image is to be drawn in the second phase, (N,), 0 for never.
        classes: The number of classes.
        views: Maps pixels (n, 3, H, W) to views (n, V, 3, H, W) in [0, 1], the image itself first.
        consistency_entropy: Returns the entropies (N,) in [0, 1] of a model after a number of epochs. If it is given,
            images are drawn with replacement, and the weights are updated by it.
        crop: Whether labelled images are cropped.
        mirror: Whether cropped images are mirrored.
        supervised: Whether there is a first phase.
        weighted: Whether images are drawn with replacement though their weights are not updated.
    """

    train: Images
    pool: Tensor
    known: Tensor
    weights: Tensor
    classes: int
    views: Callable[[Tensor, torch.Generator], Tensor]
    consistency_entropy: Callable[[nn.Module, int], Tensor] | None = None
    crop: bool = False
    mirror: bool = False
    supervised: bool = True
    weighted: bool = False

    @property
    def with_replacement(self) -> bool:
        """Whether images of the pool are drawn with replacement, by weight."""
        return self.weighted or self.consistency_entropy is not None

    @property
    def drawn_from(self) -> int:
        """The number of images in a pass of the second phase: the pool if drawn by weight, else those drawable."""
        return len(self.weights) if self.with_replacement else int((self.weights > 0).sum())

    def training_images_only(self) -> SemiSupervisedData:
        """Return the same without a pool, so that only training images are replayed."""
        known, weights = self.known[:0], self.weights[:0]
        return replace(
            self,
            pool=self.pool[:0],
            known=known,
            weights=weights,
            consistency_entropy=None,
            weighted=False,
            supervised=True,
        )

    def updated_weights(self, consistency_entropy: Tensor) -> Tensor:
        """Return weights (N,) for entropies H (N,): 1 - H for images with a weight, 1 for those with a known label."""
        certain = torch.where(self.known >= 0, 1.0, 1 - consistency_entropy.to(self.weights)).clamp(min=0)
        return torch.where(self.weights > 0, certain, 0)

    def labelled(
        self, images: Images, batch: int, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches (pixels in [0, 1], labels) of shuffled images, augmented if the data set allows it."""
        order = shuffled_batches(len(images), batch, steps, generator)
        crops = views.random_crops(order.numel(), images.pixels.shape[-2], generator, mirror=self.mirror)
        order, crops = order.to(images.labels.device), crops.to(images.labels.device)
        for indices, batch_crops in zip(order, crops.split(order.shape[1], 1), strict=True):
            pixels = views.to_float(images.pixels[indices])
            yield views.crop_and_flip(pixels, batch_crops) if self.crop else pixels, images.labels[indices]


def known_and_weights(
    selection: Selection, count: int, use: str, pool_weights: str = "dynamic"
) -> tuple[Tensor, Tensor]:
    """Return the labels int64 (N,), UNKNOWN where there is none, and the sampling weights float32 (N,) of a pool.

    `use` is one of USES: with `labels` nothing is drawn, with `unlabelled` nothing is known. Where the selection is
    weighted, images with known labels are drawn with weight 1 even if they are not among its unlabelled images; all
    others have weight 1, too, where `pool_weights` is `equal`.
    """
    device = selection.bought.device
    known = torch.full((count,), UNKNOWN, device=device)
    weights = torch.zeros(count, device=device)
    if use != "unlabelled":
        known[selection.members] = selection.member_labels
    if use != "labels":
        weights[selection.unlabelled] = 1.0 if pool_weights == "equal" else selection.weights
        if selection.facts.get("weighted"):
            weights[known != UNKNOWN] = 1
    return known, weights


def shuffled_batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return indices (steps, batch) below `count` from shuffled passes, without incomplete batches.

    If `count` is smaller than a batch, batches have `count` images.
    """
    size = min(batch, count)
    whole = count // size
    orders = [torch.randperm(count, generator=generator)[: whole * size] for _ in range(-(-steps // whole))]
    return torch.cat(orders).view(-1, size)[:steps]


def draw_batches(weights: Tensor, batch: int, steps: int, generator: torch.Generator, *, replacement: bool) -> Tensor:
    """Return indices (steps, batch) of positive weights (N,): sampled with replacement, or from shuffled passes."""
    indices = weights.cpu().nonzero()[:, 0]  # only these, so that rounding cannot choose a weight of 0
    if replacement:
        chosen = torch.multinomial(weights.cpu()[indices], steps * batch, replacement=True, generator=generator)
        return indices[chosen].view(steps, batch)
    return indices[shuffled_batches(len(indices), batch, steps, generator)]
