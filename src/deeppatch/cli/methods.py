"""The methods that options name: rankings for -f, corrections for -c."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deeppatch.localization import estimates
from deeppatch.localization.ablation import Scores


class Scoring(NamedTuple):
    """An edit of each filter: whether clean maps are swapped in or it is silenced, and how a loss of answers counts."""

    swap: bool
    sign: int
    descending: bool


# the most suspicious: those whose silencing costs least, or whose clean maps gain most
SCORINGS = {"perfloss": Scoring(False, -1, False), "featswap": Scoring(True, 1, True)}


class Estimate(NamedTuple):
    """A function that estimates all scores in one pass, their unit, and the exact scoring that --refine adds."""

    score: Callable[..., Scores]
    unit: str
    exact: Scoring


ESTIMATES = {
    "taylor": Estimate(estimates.taylor, "nats of loss", SCORINGS["perfloss"]),
    "activation": Estimate(estimates.activation, "mean change of its map", SCORINGS["featswap"]),
}
RANKINGS = (*SCORINGS, *ESTIMATES, "ratioestim")
CORRECTIONS = ("patch", "finetune")
