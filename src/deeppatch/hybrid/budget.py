"""How many labels may be bought: a number, or a share of the pool."""

from __future__ import annotations

import re
from fractions import Fraction

from deeppatch.errors import UserError

SPELLED = re.compile(r"\d+(\.\d+)?%|\d+")


def budget_problem(budget: str) -> str | None:
    """Return what is wrong with a budget such as 350 or 1%, or None."""
    if not SPELLED.fullmatch(budget):
        return "give a number of labels, or a share of the pool as 1%"
    if _amount(budget) <= 0 or (budget.endswith("%") and _amount(budget) > 100):
        return "give at least 1 label, at most 100%"
    return None


def affordable(budget: int | str, pool: int, name: str = "budget") -> int:
    """Return how many labels of a pool of `pool` images a budget buys; a share is rounded down.

    UserError, in which the budget is called `name`, where it buys none, or more than there are.

    >>> affordable("5%", 150), affordable(12, 150)
    (7, 12)
    """
    spelled = str(budget)
    problem = budget_problem(spelled)
    if problem:
        raise UserError(f"{name} {spelled}: {problem}")
    count = int(_amount(spelled) * pool / 100) if spelled.endswith("%") else int(spelled)
    if not 1 <= count <= pool:
        raise UserError(f"{name} {spelled} is {count} of {pool} images in the pool; give 1 to {pool}")
    return count


def _amount(budget: str) -> Fraction:
    return Fraction(budget.removesuffix("%"))
