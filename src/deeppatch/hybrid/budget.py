"""The budget of labels: a number, or a share of the pool."""

from __future__ import annotations

import re
from fractions import Fraction

from deeppatch.errors import UserError

FORMAT = re.compile(r"\d+(\.\d+)?%|\d+")


def budget_problem(budget: str) -> str | None:
    """Return the problem with a budget such as 350 or 1%, or None if it is valid."""
    if not FORMAT.fullmatch(budget):
        return "give a number of labels, or a share of the pool as 1%"
    if _amount(budget) <= 0 or (budget.endswith("%") and _amount(budget) > 100):
        return "give at least 1 label, at most 100%"
    return None


def affordable(budget: int | str, pool: int, name: str = "budget") -> int:
    """Return the number of labels that a budget allows for a pool of `pool` images; shares are rounded down.

    UserError, with `name` for the budget, when it allows none, or more than the pool has.

    >>> affordable("5%", 150), affordable(12, 150)
    (7, 12)
    """
    text = str(budget)
    problem = budget_problem(text)
    if problem:
        raise UserError(f"{name} {text}: {problem}")
    count = int(_amount(text) * pool / 100) if text.endswith("%") else int(text)
    if not 1 <= count <= pool:
        raise UserError(f"{name} {text} is {count} of {pool} images in the pool; give 1 to {pool}")
    return count


def _amount(budget: str) -> Fraction:
    return Fraction(budget.removesuffix("%"))
