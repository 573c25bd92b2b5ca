"""The methods that options name: rankings for -f, corrections for -c."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from deeppatch.blame import ablation


class Scoring(NamedTuple):
    """A function that scores every filter, and whether high scores are the suspicious ones."""

    score: Callable[..., ablation.Scores]
    descending: bool


SCORINGS = {"perfloss": Scoring(ablation.perfloss, False), "featswap": Scoring(ablation.featswap, True)}
RANKINGS = (*SCORINGS, "ratioestim")
CORRECTIONS = ("patch", "finetune")
