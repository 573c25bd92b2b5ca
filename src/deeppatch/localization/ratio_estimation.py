"""Estimate how large a part of each layer to patch, from patches trained at several ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

RATIOS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


def estimate(
    ratios: Sequence[float],
    right_at: Callable[[float], Tensor],
    done: dict[str, Any],
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Return the curve of accuracy against ratio and the ratio to use (TOSEM 2023, ratio estimation).

    `right_at(ratio)` trains a patch and returns, bool (levels, images), which val images it gets right at each level;
    `done` holds curve entries of an earlier run by ratio, `keep` receives them after each further ratio. The chosen
    ratio is the smallest whose mean accuracy is within one standard error, over images, of the best mean.
    """
    curve = dict(done)
    for ratio in ratios:
        if str(ratio) not in curve:
            curve[str(ratio)] = summary(right_at(ratio))
            keep(curve)
    best = max((curve[str(ratio)] for ratio in ratios), key=lambda point: point["mean"])
    reach = best["mean"] - best["standard_error"]
    chosen = min(ratio for ratio in ratios if curve[str(ratio)]["mean"] >= reach)
    return {"ratio": chosen, "curve": curve}


def summary(right: Tensor) -> dict[str, Any]:
    """Return accuracies in [0, 1] by level, their mean and its standard error over images, of bool (levels, images)."""
    per_image = right.double().mean(0)
    spread = per_image.std().item() if len(per_image) > 1 else 0.0
    return {
        "levels": right.double().mean(1).tolist(),
        "mean": per_image.mean().item(),
        "standard_error": spread / math.sqrt(max(1, len(per_image))),
    }
