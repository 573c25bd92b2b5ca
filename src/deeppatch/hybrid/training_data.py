"""What semi-supervised repair learns from: labelled images, and a pool of which some labels are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.hybrid.selection import UNKNOWN, Selection


@dataclass(frozen=True)
class Recipe:
    """The constants of HybridRepair's retraining (Li, Chen and Xu, ISSTA 2022), as its authors ran it.

    `weight` is lambda, which grows linearly from 0 over the first `ramp` epochs; `steps` caps the batches of a phase.
    """

    batch: int = 64
    smoothing: float = 0.1
    temperature: float = 0.5
    alpha: float = 0.75
    weight: float = 100.0
    ramp: int = 0
    steps: int | None = None

    def capped(self, steps: int) -> int:
        """Return `steps`, the batches of a phase, or the cap where that is less; at least 1."""
        return max(1, steps if self.steps is None else min(steps, self.steps))


@dataclass(frozen=True)
class RepairSettings:
    """How long and how fast a network is repaired, with SGD at a constant rate, as HybridRepair's authors did."""

    epochs: int = 10
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 2021
    amp: bool = False


@dataclass(frozen=True)
class SemiSupervisedData:
    """What a network learns from: labelled training images, and a pool of which some labels are known.

    `pool` is uint8 (N, 3, H, W); `known` int64 (N,) has bought and propagated labels, UNKNOWN where there is none;
    `weights` (N,) say how likely an image is drawn in the second phase, 0 for never. `views` maps such pixels
    (n, 3, H, W) to views (n, V, 3, H, W) in [0, 1], the image itself first. `consistency_entropy` returns entropies
    (N,) in [0, 1] of a model after that many epochs; where it is given, images are drawn with replacement and the
    weights follow it. `crop` and `mirror` say how labelled images are augmented; without `supervised` there is no first
    phase.
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

    @property
    def drawn_from(self) -> int:
        """How many images an epoch's second phase counts as one pass: the pool if weighted, else what it may draw."""
        return len(self.weights) if self.consistency_entropy else int((self.weights > 0).sum())

    def training_images_only(self) -> SemiSupervisedData:
        """Return the same without a pool: what is left is to replay the training images."""
        known, weights = self.known[:0], self.weights[:0]
        return replace(
            self, pool=self.pool[:0], known=known, weights=weights, consistency_entropy=None, supervised=True
        )

    def updated_weights(self, consistency_entropy: Tensor) -> Tensor:
        """Return weights (N,) for entropies (N,): 1 - H where there was a weight, 1 where a label is known."""
        certain = torch.where(self.known >= 0, 1.0, 1 - consistency_entropy.to(self.weights)).clamp(min=0)
        return torch.where(self.weights > 0, certain, 0)

    def labelled(
        self, images: Images, batch: int, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` batches (pixels in [0, 1], labels) of shuffled images, augmented as this data set allows."""
        order = shuffled_batches(len(images), batch, steps, generator)
        crops = views.random_crops(order.numel(), images.pixels.shape[-2], generator, mirror=self.mirror)
        order, crops = order.to(images.labels.device), crops.to(images.labels.device)
        for indices, where in zip(order, crops.split(order.shape[1], 1), strict=True):
            pixels = views.to_float(images.pixels[indices])
            yield views.crop_and_flip(pixels, where) if self.crop else pixels, images.labels[indices]


def known_and_weights(selection: Selection, count: int, use: str) -> tuple[Tensor, Tensor]:
    """Return labels int64 (N,), UNKNOWN where there is none, and drawing weights float32 (N,) for a pool of `count`.

    `use` is one of USES: with `labels` nothing is drawn, with `unlabelled` nothing is known. Where the selection is
    weighted, images whose label is known are drawn with weight 1 whatever the cut says.
    """
    device = selection.bought.device
    known = torch.full((count,), UNKNOWN, device=device)
    weights = torch.zeros(count, device=device)
    if use != "unlabelled":
        known[selection.members] = selection.member_labels
    if use != "labels":
        weights[selection.unlabelled] = selection.weights
        if selection.facts.get("weighted"):
            weights[known != UNKNOWN] = 1
    return known, weights


def shuffled_batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return indices (steps, batch) below `count`: shuffled passes, each without the remainder that fills no batch.

    Where `count` is less than a batch, batches are that small.
    """
    size = min(batch, count)
    whole = count // size
    orders = [torch.randperm(count, generator=generator)[: whole * size] for _ in range(-(-steps // whole))]
    return torch.cat(orders).view(-1, size)[:steps]


def draw_batches(weights: Tensor, batch: int, steps: int, generator: torch.Generator, *, replacement: bool) -> Tensor:
    """Return indices (steps, batch) of positive weights (N,): drawn by weight with replacement, or shuffled passes."""
    indices = weights.cpu().nonzero()[:, 0]  # drawn only among these: no rounding can choose a weight of 0
    if replacement:
        chosen = torch.multinomial(weights.cpu()[indices], steps * batch, replacement=True, generator=generator)
        return indices[chosen].view(steps, batch)
    return indices[shuffled_batches(len(indices), batch, steps, generator)]
