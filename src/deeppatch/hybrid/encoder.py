"""An encoder that is trained on unlabelled images by contrastive learning (SimCLR)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.views import to_float
from deeppatch.features import embed, last_linear
from deeppatch.graph.hooks import swap

PROJECTION_SIZE = 128
TEMPERATURE = 0.5
MIN_CROP_AREA = 0.2
JITTER = 0.4
HUE = 0.1
NEIGHBOURS = 20
# luminance and two colour axes, which a change of hue rotates (YIQ)
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class Encoder(nn.Module):
    """A classifier whose last linear layer is replaced by a projection head of two layers, used only in training."""

    def __init__(self, classifier: nn.Module, example: Tensor) -> None:
        super().__init__()
        name, layer = last_linear(classifier, example)
        width = layer.in_features
        swap(classifier, name, nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION_SIZE)))
        self.body = classifier
        self.head = name

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to projections (N, 128) of length 1."""
        return F.normalize(self.body(pixels), dim=1)

    def features(self, pixels: Tensor, *, batch_size: int = 256, amp: bool = False) -> Tensor:
        """Return the input of the projection head, float32 (N, D), for uint8 pixels (N, 3, H, W), in eval mode."""
        layer = self.body.get_submodule(self.head)
        return embed(self.body, pixels, batch_size=batch_size, amp=amp, label="encoding", layer=layer).features


@dataclass(frozen=True)
class PositivePairs:
    """One epoch of batches: two augmented copies of each of n images, (2n, 3, H, W), all first copies first.

    Random numbers depend only on `seed` and `epoch`. The second entry of a batch has the indices of the images, (n,).
    """

    pixels: Tensor
    batch_size: int
    seed: int
    epoch: int
    mirror: bool = True

    def __len__(self) -> int:
        return max(1, len(self.pixels) // self.batch_size)  # a short batch would have few negatives

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = runtime.generator(self.seed, "pairs", self.epoch)
        order = torch.randperm(len(self.pixels), generator=generator)
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size].to(self.pixels.device)
            copies = to_float(self.pixels[indices]).repeat(2, 1, 1, 1)
            yield augment(copies, generator, mirror=self.mirror), indices


def contrastive_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the contrastive loss NT-Xent (Chen et al., ICML 2020, eq. 1).

    The first entry of `batch` is pixels (2n, 3, H, W), where i and n + i are copies of one image; others are ignored.
    """
    projections = model(batch[0]).float()
    count = len(projections) // 2
    similarity = projections @ projections.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=similarity.device), -torch.inf)
    partners = torch.arange(2 * count, device=similarity.device).roll(count)
    return F.cross_entropy(similarity, partners)


def augment(pixels: Tensor, generator: torch.Generator, *, mirror: bool = True) -> Tensor:
    """Return pixels (N, 3, H, W) in [0, 1], randomly cropped, recoloured and greyed (SimCLR, appendix A).

    A crop has 20 to 100 % of the area and an aspect ratio from 3/4 to 4/3. Colours change with probability 0.8, and
    an image becomes grey with probability 0.2. The generator is on the CPU.
    """
    count, device = len(pixels), pixels.device
    crops = _crops(count, generator, mirror).to(device)
    grid = F.affine_grid(crops, list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    colours, contrasts = (drawn.to(device) for drawn in _colours(count, generator))
    means = (YIQ[0].to(device).view(1, 3, 1, 1) * cropped).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    cropped = torch.lerp(means, cropped, contrasts.view(-1, 1, 1, 1))
    return (colours @ cropped.flatten(2)).view_as(cropped).clamp_(0, 1)


def _crops(count: int, generator: torch.Generator, mirror: bool) -> Tensor:
    """Draw the crop of each image: affine matrices (N, 2, 3) from output to input, in [-1, 1]."""
    area = MIN_CROP_AREA + (1 - MIN_CROP_AREA) * torch.rand(count, generator=generator)
    ratio = ((2 * torch.rand(count, generator=generator) - 1) * math.log(4 / 3)).exp()
    width, height = ((area * factor).sqrt().clamp(max=1) for factor in (ratio, 1 / ratio))
    across, down = ((2 * torch.rand(count, generator=generator) - 1) * (1 - size) for size in (width, height))
    flipped = 1 - 2.0 * ((torch.rand(count, generator=generator) < 0.5) & mirror)
    zero = torch.zeros(count)
    return torch.stack([width * flipped, zero, across, zero, height, down], 1).view(-1, 2, 3)


def _colours(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw colour changes: matrices (N, 3, 3) of brightness, saturation, hue and greying, and contrasts (N,)."""
    brightness, contrasts, saturation = 1 + JITTER * (2 * torch.rand(3, count, generator=generator) - 1)
    angle = 2 * math.pi * HUE * (2 * torch.rand(count, generator=generator) - 1)
    changed = torch.rand(count, generator=generator) < 0.8
    grey = torch.rand(count, generator=generator) < 0.2
    saturation = torch.where(grey, 0, torch.where(changed, saturation, 1))
    brightness, contrasts, angle = (
        torch.where(changed, each, usual) for each, usual in ((brightness, 1), (contrasts, 1), (angle, 0))
    )
    zero, one = torch.zeros(count), torch.ones(count)
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(-1, 3, 3)
    return brightness.view(-1, 1, 1) * (torch.linalg.inv(YIQ) @ rotation @ YIQ), contrasts


def neighbours_accuracy(known: Tensor, labels: Tensor, features: Tensor, truth: Tensor) -> float:
    """Return the accuracy, in [0, 1], of a classifier by the 20 nearest neighbours in cosine similarity.

    `known` (R, D) are the features of images with `labels` (R,); `features` (N, D) with `truth` (N,) are classified.
    """
    classes = int(max(labels.max(), truth.max())) + 1
    near = F.normalize(known, dim=1).T
    correct = 0
    for part, own in zip(F.normalize(features, dim=1).split(1024), truth.split(1024), strict=True):
        votes = labels[(part @ near).topk(min(NEIGHBOURS, len(known)), dim=1).indices]
        correct += int((F.one_hot(votes, classes).sum(1).argmax(1) == own).sum())
    return correct / len(truth)
