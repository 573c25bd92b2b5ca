"""Which network of a ledger the verdict is about, and the verdict on it."""

from __future__ import annotations

import pandas as pd

from deeppatch.errors import UserError
from deeppatch.ledger import pools
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.metrics import Interval
from deeppatch.report.verdict import Verdict, verdict


def judged_network(ledger: Ledger, tidy: pd.DataFrame, target: str | None) -> str:
    """Return the network that a verdict is about: the one that is named, else the one that gains most.

    Raises:
        UserError: When there is none beside the base, or none of this name.
    """
    others = [name for name in ledger.networks if name != ledger.base]
    if not others:
        raise UserError(f"the ledger has no network beside {ledger.base}; compare it with another one")
    if target is not None and target not in others:
        raise UserError(f"target={target!r}: there are the networks {', '.join(others)}")
    return target or best(tidy[tidy.network.isin(others)])


def best(tidy: pd.DataFrame) -> str:
    """Return the network that gains most over the base on the mixed stream, so that a loss on clean images counts.

    Without such a stream degraded images decide, or clean ones.
    """
    gained = tidy[(tidy.measure == "change") & (tidy.severity == 0)]
    view = next(view for view in (MIXED, pools.DEGRADED, CLEAN) if view in set(gained["view"]))
    own = gained[gained["view"] == view]
    return str(own.sort_values("estimate", kind="stable")["network"].iloc[-1])


def judge_network(tidy: pd.DataFrame, network: str, base: str) -> Verdict:
    """Return the verdict on a network: on blurred images where the published blur is the only degradation."""
    own = tidy[(tidy.network == network) & (tidy.measure == "change") & (tidy.severity == 0)]
    gained = {str(row["view"]): Interval(row["estimate"], row["low"], row["high"]) for row in own.to_dict("records")}
    of_blur, degraded = gained.get(pools.BLURRED), gained.get(pools.DEGRADED)
    on = pools.BLURRED if of_blur == degraded else pools.DEGRADED
    return verdict(network, gained[CLEAN], degraded, on=on, base=base)
