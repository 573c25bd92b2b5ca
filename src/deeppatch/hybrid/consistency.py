"""How consistent a model's predictions are over views of an image, and from which entropy on that is unusual."""

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
# for the threshold: neighbours in the training images, images at average distance, and images that are compared
NEIGHBOURS = 100
TYPICAL_IMAGES = 1_000
SAMPLED_IMAGES = 5_000


@dataclass(frozen=True)
class Consistency:
    """What a model predicts for views of N images.

    `entropy` (N,) in [0, 1] is that of the mean prediction, over the log of the number of classes; `single` (N,) is the
    same of only the untouched image; `variance` (N,): the sum over classes of the unbiased
    variance over views; `mean` (N, C): the mean prediction.
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
    """Show a model, in eval mode, uint8 pixels (N, 3, H, W) and `count` AugMix views of each.

    What HybridRepair calls unsmoothness is `entropy`, here over log C: its own unit, the largest value of the set at
    hand, differs from set to set and from epoch to epoch. The generator is on the CPU.
    """
    device = next(model.parameters()).device
    chunks = pixels.split(CHUNK)
    parts = []
    with eval_mode(model):
        for chunk in track(chunks, len(chunks), label):
            seen = views(chunk, count, generator).flatten(0, 1)
            with runtime.autocast(device, amp):
                logits = torch.cat([model(batch) for batch in seen.split(batch_size)])
            parts.append(summary(logits.float().softmax(1).unflatten(0, (len(chunk), count + 1))))
    return Consistency(*map(torch.cat, zip(*parts, strict=True)))


def summary(predictions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return entropy, single entropy, variance and mean of predictions (N, V, C), view 0 being the untouched image."""
    mean = predictions.mean(1)
    entropy, single = (uncertainty(each) for each in (mean, predictions[:, 0]))
    several = predictions.shape[1] > 1
    variance = predictions.var(1).sum(1) if several else torch.zeros_like(entropy)
    return entropy, single, variance, mean


def uncertainty(predictions: Tensor) -> Tensor:
    """Return the entropy (N,) of predictions (N, C) over log C: 0 for a certain one, 1 for a uniform one."""
    return torch.special.entr(predictions).sum(1) / math.log(predictions.shape[1])


def threshold(entropy: Tensor, logits: Tensor, train_logits: Tensor, generator: torch.Generator) -> float:
    """Return tau: the mean entropy of images of the pool that lie at average distance from the training images.

    The distance of an image is the mean of its 100 least cosine distances to training images, by logits (N, C) and
    (R, C) of clean images; the mean of `entropy` (N,) is over the 1,000 images whose distance is nearest to the average
    one, among 5,000 drawn from the pool. (HybridRepair compares the test set instead, which is then no longer unseen.)
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
