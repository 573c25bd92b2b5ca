"""Rank the filters of a classifier by how far they cause its failures on degraded images."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.localization.elimination import rank_by_elimination
from deeppatch.localization.exact_scores import ExactScorer
from deeppatch.localization.names import EXACT_METHODS, METHODS, SIDES
from deeppatch.localization.ranking import Ranking, nearest_cut, random_ranking, rank, refine
from deeppatch.localization.scorers import SCORERS, EstimatedScorer
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.zoo.classifier import device_of


def rank_filters(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    method: str = "perfloss",
    refine: int = 0,
    eliminate: float | None = None,
    ratio: float = 0.25,
    side: str = "front",
    memory: int = 2048,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> Ranking:
    """Rank the filters of every convolution (groups=1) on the degraded validation images, most suspicious first.

    Methods: `perfloss` sets each filter to zero and measures the loss of accuracy, `featswap` replaces its map by that
    of the clean image and measures the gain (TOSEM 2023); both are exact. `taylor` estimates perfloss from a single
    backward pass (Molchanov et al., ICLR 2017, eq. 8), `activation` featswap by the mean absolute change of the
    filter's map. `random` ranks filters in random order.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data whose part `val` is read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        method: One of the methods above.
        refine: With an estimating method, the number of filters of each layer nearest the cut to sort by exact scores.
        eliminate: With an exact method, the error probability, between 0 and 0.5, at which a filter is no longer
            evaluated because its side of the cut is known. The order on either side of the cut is then approximate.
        ratio: The share of each layer's filters to be patched, which defines the cut of `refine` and `eliminate`.
        side: The side of the ranking that will be patched, `front` or `rear`; for `refine` and `eliminate`.
        memory: The memory in MiB for the feature maps of a batch; it limits the batch size.
        batch_size: The largest number of images in a batch.
        amp: Whether exact scores are computed in bfloat16, if the processor supports it.
        seed: The seed of the level of each image in featswap and activation, and of a random order.
        checkpoint: Where the state of an unfinished run is saved, and resumed from.

    Returns:
        The ranking; scores of exact methods are differences of accuracies in [-1, 1].

    Raises:
        ValueError: When arguments contradict each other or a name is unknown.

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
        >>> ranking = rank_filters(model, data, blur, method="taylor")
        >>> sorted(ranking.order["0"])
        [0, 1, 2, 3]
        >>> [len(channels) for channels in ranking.choose(ratio=0.5).values()]
        [2]
    """
    _check_arguments(method, refine, eliminate, side)
    check_positive(batch_size=batch_size, memory=memory, ratio=ratio)
    images = data.val.to(device_of(model))
    scored = copy.deepcopy(model).eval()
    check_classifier(scored, views.to_float(images.pixels[:2]), len(data.classes))
    degrade = corruptions.corruption(corruption, seed=seed)
    scorer = SCORERS.get(method)
    if scorer is not None and scorer.paired and not corruptions.is_paired(degrade):
        raise UserError(
            f"{method} compares each degraded image with its clean one, but some of "
            f"{', '.join(degrade.level_names[:4])} are of other images: use perfloss or taylor, or give every clean "
            "image a degraded one of its name"
        )
    run = ScoringRun(scored, images, degrade, batch_size, memory, amp, seed, checkpoint)
    if scorer is None:
        return random_ranking(run.widths, seed)
    if isinstance(scorer, ExactScorer) and eliminate is not None:
        return rank_by_elimination(run, scorer, eliminate, ratio, side)
    ranking = rank(method, scorer.score(run), descending=scorer.descending)
    if isinstance(scorer, EstimatedScorer) and refine:
        return _refine_ranking(run, scorer, ranking, nearest_cut(ranking, ratio, side, refine))
    return ranking


def _check_arguments(method: str, count: int, delta: float | None, side: str) -> None:
    if method not in METHODS:
        raise UserError(f"method {method!r}: choose from {', '.join(METHODS)}")
    if side not in SIDES:
        raise UserError(f"side {side!r}: choose from {', '.join(SIDES)}")
    if count < 0 or (count and not isinstance(SCORERS.get(method), EstimatedScorer)):
        raise UserError(f"refine={count}: give 0 or more filters, and an estimate as the method, not {method}")
    if delta is not None and not (0 < delta < 0.5 and method in EXACT_METHODS):
        raise UserError(f"eliminate={delta}: give a probability above 0, below 0.5, and an exact method, not {method}")
    if side == "random" and (count or delta is not None):
        raise UserError("side='random' makes no cut in a ranking: leave out refine and eliminate")


def _refine_ranking(
    run: ScoringRun, scorer: EstimatedScorer, ranking: Ranking, windows: dict[str, list[int]]
) -> Ranking:
    """Sort the filters of each layer's window by exact scores, and add these to the facts of the ranking."""
    scores = scorer.exact.score(run, windows)
    facts: dict[str, Any] = {"refined": {name: dict(zip(windows[name], scores[name], strict=True)) for name in windows}}
    refined = refine(ranking, windows, scores, descending=scorer.exact.descending)
    return dataclasses.replace(refined, facts=facts)
