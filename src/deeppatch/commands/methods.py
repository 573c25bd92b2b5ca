"""The methods that options name: rankings for -f, corrections for -c."""

from __future__ import annotations

from typing import NamedTuple


class Scoring(NamedTuple):
    """An edit of each filter: whether clean maps are swapped in or it is silenced, and how a loss of answers counts."""

    swap: bool
    sign: int
    descending: bool


# the most suspicious: those whose silencing costs least, or whose clean maps gain most
SCORINGS = {"perfloss": Scoring(False, -1, False), "featswap": Scoring(True, 1, True)}
RANKINGS = (*SCORINGS, "ratioestim")
CORRECTIONS = ("patch", "finetune")
