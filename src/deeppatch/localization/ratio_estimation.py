"""Estimate the share of each layer's filters to patch, from patches that are trained at several ratios."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from deeppatch import metrics
from deeppatch.artifacts import Checkpoint
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.distributed import ranks
from deeppatch.errors import UserError
from deeppatch.graph.candidates import candidates
from deeppatch.localization.ranking import Ranking, random_ranking
from deeppatch.progress import info
from deeppatch.training import predict, seeded
from deeppatch.zoo.classifier import device_of, network_of, normalize_of

RATIOS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class RatioEstimate:
    """The estimated share of each layer's filters to patch, and the measurements behind it.

    Args:
        ratio: The estimated share.
        curve: By ratio (as text): the accuracies on val at each level in [0, 1] (`levels`), their `mean`, and the
            `standard_error` of the mean over images.
        ranking: The ranking whose filters were patched.
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

    Raises:
        UserError: When there is no ratio, one is not above 0 and at most 1, or the data or the degradation do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.dataset import Data
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> blur = GaussianBlur((1.0, 2.0))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> estimate_ratio(model, data, blur, train=lambda channels: model, ratios=(0.5, 0.25)).ratio
        0.25
    """
    ratios = RATIOS if ratios is None else ratios
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise UserError(f"ratios {list(ratios)}: give at least one, each above 0 and at most 1")
    if ranking is None:
        found = candidates(network_of(model), normalize_of(model, data.example.to(device_of(model))))
        ranking = random_ranking({name: conv.out_channels for name, conv in found.items()}, seed)
    ratios = [ratio for ratio in ratios if ranking.choose(ratio, side, seed)]  # small layers need larger ones
    if not ratios:
        raise UserError("no ratio chooses a filter in any layer; give larger ratios")
    degrade = corruptions.corruption(corruption, seed=seed)
    levels = list(range(1, len(degrade) + 1))
    val = views.levels_view(data.val.to(device_of(model)), degrade, levels, batch_size)

    def correct_at(ratio: float) -> metrics.Rows:
        channels = ranking.choose(ratio, side, seed)
        info(f"ratio {ratio:g}: {sum(map(len, channels.values()))} filters in {len(channels)} layers")
        with seeded(seed):
            patched = train(channels)
        # a copy, because predict sets the mode
        predictions = predict(copy.deepcopy(patched), val, amp=amp)
        correct = predictions == val.labels
        return metrics.rows_of([correct[val.levels == level] for level in levels])

    done = (ranks.broadcast_from_rank0(lambda: _measured(checkpoint)) if checkpoint else None) or {}
    keep = checkpoint.save if checkpoint else lambda _curve: None
    result = choose_ratio(ratios, correct_at, done, keep)
    return RatioEstimate(result["ratio"], result["curve"], ranking)


def _measured(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the curve of an interrupted run, by ratio; StaleArtifact where it is none."""
    found = checkpoint.load()
    with checkpoint.undamaged():
        for point in (found or {}).values():
            float(point["mean"]), float(point["standard_error"]), list(point["levels"])
    return found


def choose_ratio(
    ratios: Sequence[float],
    correct_at: Callable[[float], metrics.Rows],
    done: dict[str, Any],
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Measure accuracy at each ratio, and choose the smallest one within one standard error of the best.

    Args:
        ratios: The ratios to try.
        correct_at: Trains a patch at a ratio, and returns which val images it classifies correctly, bool (levels,
            images).
        done: The entries of the curve that an interrupted run has finished, by ratio.
        keep: Receives the curve after each ratio.

    Returns:
        The chosen `ratio` and the `curve`.
    """
    curve = dict(done)
    for ratio in ratios:
        if str(ratio) not in curve:
            curve[str(ratio)] = accuracy_summary(correct_at(ratio))
            keep(curve)
    best = max((curve[str(ratio)] for ratio in ratios), key=lambda point: point["mean"])
    lowest = best["mean"] - best["standard_error"]
    chosen = min(ratio for ratio in ratios if curve[str(ratio)]["mean"] >= lowest)
    return {"ratio": chosen, "curve": curve}


def accuracy_summary(correct: metrics.Rows) -> dict[str, Any]:
    """Return the accuracy at each level, its mean and the standard error over images, of bool (levels, images)."""
    if isinstance(correct, tuple):  # levels of unlike length, taken as independent
        shares = [row.double().mean().item() for row in correct]
        errors = [share * (1 - share) / len(row) for share, row in zip(shares, correct, strict=True)]
        mean = sum(shares) / len(shares)
        return {"levels": shares, "mean": mean, "standard_error": math.sqrt(sum(errors)) / len(shares)}
    per_image = correct.double().mean(0)
    deviation = per_image.std().item() if len(per_image) > 1 else 0.0
    return {
        "levels": correct.double().mean(1).tolist(),
        "mean": per_image.mean().item(),
        "standard_error": deviation / math.sqrt(max(1, len(per_image))),
    }
