"""Measure the consistency of a model's predictions over views of an image, and choose a threshold of entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.augmix import views
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track

CHUNK = 256
# for the threshold: nearest training images, images of typical distance, and images sampled from the pool
NEIGHBOURS = 100
TYPICAL_IMAGES = 1_000
SAMPLED_IMAGES = 5_000


@dataclass(frozen=True)
class Consistency:
    """A model's predictions for views of N images.

    Args:
        entropy: The entropy of the mean prediction, divided by the log of the number of classes, (N,) in [0, 1].
        single: The same for the prediction of the image itself, (N,).
        variance: The sum over classes of the unbiased variance over views, (N,).
        mean: The mean prediction, (N, C).
    """

    entropy: Tensor
    single: Tensor
    variance: Tensor
    mean: Tensor


@torch.no_grad()
def consistency(
    model: nn.Module,
    pixels: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "views",
) -> Consistency:
    """Predict uint8 pixels (N, 3, H, W) and `count` AugMix views of each, in eval mode.

    HybridRepair's unsmoothness is `entropy`, here divided by log C; HybridRepair divides by the largest value of all
    images, which differs from data set to data set and from epoch to epoch. The generator is on the CPU.
    """
    device = next(model.parameters()).device
    chunks = pixels.split(CHUNK)
    parts = []
    with eval_mode(model):
        for chunk in track(chunks, len(chunks), label):
            view_pixels = views(chunk, count, generator).flatten(0, 1)
            with runtime.autocast(device, amp):
                logits = torch.cat([model(batch) for batch in view_pixels.split(batch_size)])
            parts.append(summary(logits.float().softmax(1).unflatten(0, (len(chunk), count + 1))))
    return Consistency(*map(torch.cat, zip(*parts, strict=True)))


def summary(predictions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return entropy, single entropy, variance and mean of predictions (N, V, C), where view 0 is the image itself."""
    mean = predictions.mean(1)
    entropy, single = (uncertainty(probabilities) for probabilities in (mean, predictions[:, 0]))
    several = predictions.shape[1] > 1
    variance = predictions.var(1).sum(1) if several else torch.zeros_like(entropy)
    return entropy, single, variance, mean


def uncertainty(predictions: Tensor) -> Tensor:
    """Return the entropy (N,) of predictions (N, C) over log C: 0 for a certain one, 1 for a uniform one."""
    return torch.special.entr(predictions).sum(1) / math.log(predictions.shape[1])


def threshold(entropy: Tensor, logits: Tensor, train_logits: Tensor, generator: torch.Generator) -> float:
    """Return tau: the mean entropy of images of the pool at a typical distance from the training images.

    The distance of an image is the mean of its 100 smallest cosine distances to training images, between logits (N, C)
    and (R, C) of clean images. The mean of `entropy` (N,) is over the 1,000 images whose distance is nearest to the
    average, among 5,000 sampled from the pool. (HybridRepair samples the test set, which is then no longer unseen.)
    """
    chosen = torch.randperm(len(logits), generator=generator)[:SAMPLED_IMAGES].to(logits.device)
    neighbours = min(NEIGHBOURS, len(train_logits))
    near = F.normalize(train_logits, dim=1).T
    distances = torch.cat(
        [
            1 - (F.normalize(part, dim=1) @ near).topk(neighbours, dim=1).values.mean(1)
            for part in logits[chosen].split(CHUNK)
        ]
    )
    typical = (distances - distances.mean()).abs().topk(min(TYPICAL_IMAGES, len(chosen)), largest=False).indices
    return entropy[chosen][typical].mean().item()
