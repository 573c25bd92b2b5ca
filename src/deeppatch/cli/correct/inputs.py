"""The inputs of correct: the filters to patch, and the fine-tuned network."""

from __future__ import annotations

from typing import Any

from deeppatch.cli.context import Context
from deeppatch.cli.locating import ranks_filters
from deeppatch.cli.options import DEFAULT_RATIO
from deeppatch.cli.rankings import load_ranking
from deeppatch.errors import UserError
from deeppatch.localization.ranking import Ranking
from deeppatch.localization.scoring import rank_filters
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


def chosen_filters(context: Context, model: Classifier) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Return the channels of each layer to patch, and how they were chosen."""
    options = context.options
    ranking, estimated = ranking_of(context, model)
    ratio = options.susp_ratio or estimated or DEFAULT_RATIO
    channels = ranking.choose(ratio, options.susp_side, filter_seed(options))
    if not channels:
        raise UserError(f"--susp_ratio {ratio:g} chooses no filter in any layer; give a larger share")
    count = sum(map(len, channels.values()))
    info(
        f"patching {count} filters in {len(channels)} layers (ratio {ratio:g}, {options.susp_side} of {ranking.method})"
    )
    facts = {
        "ranking": ranking.method,
        "ratio": ratio,
        "side": options.susp_side,
        "filters": count,
        "channels": channels,
    }
    return channels, facts


def ranking_of(context: Context, model: Classifier) -> tuple[Ranking, float | None]:
    """Return the ranking that assess left, or one at random where none is needed; and the ratio of -f ratioestim."""
    if ranks_filters(context.options):
        return load_ranking(context, model)
    ranking = rank_filters(model, context.data, context.corruption, method="random", seed=filter_seed(context.options))
    return ranking, None


def filter_seed(options: Any) -> int:
    """Return the seed by which filters are drawn at random."""
    return int(options.seed if options.filter_seed is None else options.filter_seed)
