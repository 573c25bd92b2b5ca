"""Estimate how large a part of each layer to patch, from patches trained at several ratios."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ranking import Ranking, random_ranking
from deeppatch.progress import info
from deeppatch.training import predict, seeded
from deeppatch.zoo.classifier import device_of, network_of

RATIOS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class RatioEstimate:
    """The share of each layer's filters to patch, and how it was found.

    `curve` has, by ratio as text, the accuracies in [0, 1] on val by level (`levels`), their `mean`, and the
    `standard_error` of the mean over images. `ranking` is the ranking whose filters were patched.
    """

    ratio: float
    curve: dict[str, dict[str, Any]]
    ranking: Ranking


def estimate_ratio(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    train: Callable[[dict[str, list[int]]], nn.Module],
    ranking: Ranking | None = None,
    ratios: Sequence[float] | None = None,
    side: str = "front",
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> RatioEstimate:
    """Train a patch at each ratio, and return the smallest one that is about as good as the best (TOSEM 2023).

    Args:
        model: The classifier that is patched.
        data: The data; patches are compared on the part `val`.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        train: Trains a patch of the given channels, by layer, and returns the patched model. Before each call torch is
            seeded, so that a patch does not depend on the ratios before it.
        ranking: The ranking whose filters are patched (default: a random one by `seed`).
        ratios: The shares of each layer's filters to try (default: 0.15, 0.25, ..., 0.95).
        side: The side of the ranking: `front`, `rear` or `random`.
        batch_size: The number of images at a time.
        amp: Whether models run in bfloat16.
        seed: The seed of a random ranking, of a random choice, and of each training.
        checkpoint: Where an interrupted run is continued from, after the last ratio that it finished.

    Returns:
        The smallest ratio whose mean accuracy over levels is within one standard error of the best mean; the curve;
        the ranking.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.corruptions import Blur
        >>> from deeppatch.data.dataset import Data
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> blur = Blur((1.0, 2.0), 12, 16, torch.device("cpu"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> estimate_ratio(model, data, blur, train=lambda channels: model, ratios=(0.5, 0.25)).ratio
        0.25
    """
    ranking = ranking or random_ranking(
        {name: conv.out_channels for name, conv in convolutions(network_of(model)).items()}, seed
    )
    degrade = corruptions.corruption(corruption, seed=seed)
    val = views.expand(data.val.to(device_of(model)), degrade, batch_size)

    def correct_at(ratio: float) -> Tensor:
        channels = ranking.choose(ratio, side, seed)
        info(f"ratio {ratio:g}: {sum(map(len, channels.values()))} filters in {len(channels)} layers")
        with seeded(seed):
            patched = train(channels)
        # a copy, because predict sets the mode
        predictions = predict(copy.deepcopy(patched), val, amp=amp)
        return (predictions == val.labels).view(len(degrade), -1)

    done = (ranks.broadcast_from_rank0(checkpoint.load) if checkpoint else None) or {}
    keep = checkpoint.save if checkpoint else lambda _curve: None
    found = estimate(RATIOS if ratios is None else ratios, correct_at, done, keep)
    return RatioEstimate(found["ratio"], found["curve"], ranking)


def estimate(
    ratios: Sequence[float],
    correct_at: Callable[[float], Tensor],
    done: dict[str, Any],
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Return the curve of accuracy against ratio and the ratio to use.

    `correct_at(ratio)` trains a patch and returns, bool (levels, images), the val images that it classifies correctly;
    `done` holds curve entries of an earlier run by ratio, `keep` receives them after each further ratio. The chosen
    ratio is the smallest whose mean accuracy is within one standard error, over images, of the best mean.
    """
    curve = dict(done)
    for ratio in ratios:
        if str(ratio) not in curve:
            curve[str(ratio)] = summary(correct_at(ratio))
            keep(curve)
    best = max((curve[str(ratio)] for ratio in ratios), key=lambda point: point["mean"])
    reach = best["mean"] - best["standard_error"]
    chosen = min(ratio for ratio in ratios if curve[str(ratio)]["mean"] >= reach)
    return {"ratio": chosen, "curve": curve}


def summary(correct: Tensor) -> dict[str, Any]:
    """Return accuracies in [0, 1] by level, their mean and its standard error over images, of bool (levels, images)."""
    per_image = correct.double().mean(0)
    deviation = per_image.std().item() if len(per_image) > 1 else 0.0
    return {
        "levels": correct.double().mean(1).tolist(),
        "mean": per_image.mean().item(),
        "standard_error": deviation / math.sqrt(max(1, len(per_image))),
    }
