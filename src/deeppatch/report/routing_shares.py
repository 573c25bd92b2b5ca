"""How a network that routes shares out the images of each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deeppatch.ledger.ledger import Ledger

MOST_VIEWS = 14  # of more views, those of a type are one row


@dataclass(frozen=True)
class RoutingShares:
    """The share in [0, 1] of the images of each view that each path answers; rows are (view, images, shares).

    Path 0 is the original network; of two paths, only the other one is listed.
    """

    network: str
    paths: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float]]]


def routing_shares(ledger: Ledger) -> list[RoutingShares]:
    """Return the shares of each network that routes.

    >>> from deeppatch.ledger.records import LedgerView, Network, Outcomes
    >>> view = LedgerView("clean", "clean", 0, "", False, np.zeros(4, int), np.arange(4))
    >>> own = Outcomes(np.zeros(4, int), *[np.zeros(4)] * 3, routed=np.array([0, 0, 0, 1]))
    >>> ledger = Ledger("old", {"new": Network("new", "")}, (view,), {("new", "clean"): own}, ("cat",))
    >>> routing_shares(ledger)[0].rows
    [('clean', 4, [0.25])]
    """
    found = []
    names = [view.name for view in ledger.views]
    if len(names) > MOST_VIEWS:
        rows = {view.kind: [each.name for each in ledger.views if each.kind == view.kind] for view in ledger.views}
    else:
        rows = {name: [name] for name in names}
    for network in ledger.networks:
        routed = {
            view: each.routed
            for (own, view), each in ledger.outcomes.items()
            if own == network and each.routed is not None
        }
        if not routed:
            continue
        paths = max(2, 1 + max(int(each.max(initial=0)) for each in routed.values()))
        shares = []
        for label, members in rows.items():
            parts = [routed[name] for name in members if name in routed]
            if parts:
                joined = np.concatenate(parts).astype(int)
                counts = np.bincount(joined, minlength=paths)
                listed = (counts / len(joined))[1 if paths == 2 else 0 :]
                shares.append((label.replace("_", " "), len(joined), [float(share) for share in listed]))
        several = ["original network", *(f"expert {number}" for number in range(1, paths))]
        found.append(RoutingShares(network, ["patched network"] if paths == 2 else several, shares))
    return found
