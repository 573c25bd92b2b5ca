"""The options that annotate and relearn share, and the name of the folder that annotate leaves."""

from __future__ import annotations

import argparse

from deeppatch.options import ANNOTATE


def annotate_name(options: argparse.Namespace) -> str:
    """Return the name of annotate's folder: a budget of 5% is called 5pc there."""
    named = {name: _spelled(getattr(options, name)) for name in ("budget", "features", "views")}
    usual = {name: _spelled(ANNOTATE[name]) for name in named}
    return "-".join(["annotate", options.method, *(f"{k}{v}" for k, v in named.items() if v != usual[k])])


def _spelled(value: object) -> str:
    return str(value).replace("%", "pc")
