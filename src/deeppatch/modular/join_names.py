"""Parse the names of joins, without importing PyTorch."""

from __future__ import annotations

import math

from deeppatch.errors import UserError
from deeppatch.modular.names import JOINS


def parse(join: str) -> tuple[str, tuple[float, ...]]:
    """Return a join's name, and the two percentiles if it has them; UserError when it is none."""
    name, colon, rest = join.partition(":")
    try:
        numbers = tuple(float(number) for number in rest.split(",")) if colon else ()
    except ValueError:
        numbers = (math.nan, math.nan)
    if name not in JOINS or (colon and name != "percentile"):
        raise UserError(f"join {join}: choose from {', '.join(JOINS)}, or percentile:M,N")
    if colon and not (len(numbers) == 2 and 0 <= numbers[0] < numbers[1] <= 100):
        raise UserError(f"join {join}: give two percentiles from 0 to 100, the lower first, as percentile:10,90")
    return name, numbers
