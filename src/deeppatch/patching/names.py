"""The names of what patching offers: kinds of units, sides of a ranking, corrections and routers."""

from __future__ import annotations

UNIT_KINDS = ("replace", "crtunit")
SIDES = ("front", "rear", "random")
CORRECTIONS = ("patch", "finetune")
ROUTERS = ("probe", "flips")
