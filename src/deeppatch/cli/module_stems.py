"""The readable names of the folders that modularize and compose leave, for `naming`."""

from __future__ import annotations

from typing import Any

from deeppatch.modular.weak_networks import published_weak_network


def modularize(options: Any) -> str:
    """Return the stem of what modularize leaves."""
    parts = ["modularize", options.method]
    parts += ["no-head"] if options.no_head else []
    parts += [options.preset] if options.preset != "auto" else []
    return "-".join(parts)


def compose(options: Any) -> str:
    """Return the stem of what compose leaves."""
    if options.assemble:
        return "compose-assembled"
    parts = [modularize(options).replace("modularize", "compose", 1), options.fit]
    usual = published_weak_network(options.model, options.dataset, options.fit)
    parts += [options.weak] if options.weak not in (None, usual) else []
    parts += [options.target] if options.target != "all" else []
    parts += [join.replace(":", "").replace(",", "-") for join in options.join or []]
    return "-".join(parts)
