"""The names of the methods that rank filters."""

from __future__ import annotations

RANKINGS = ("perfloss", "featswap", "taylor", "activation", "ratioestim")
