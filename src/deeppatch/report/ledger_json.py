"""A ledger as JSON, under the keys that RobustBench uses."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from deeppatch import metrics
from deeppatch.data.corruption_names import COMMON
from deeppatch.ledger import pools, summary
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, LATENCY


def contents(ledger: Ledger, tidy: pd.DataFrame) -> dict[str, Any]:
    """Return what ledger.json holds.

    Of each network: `clean_acc` and `corruptions_acc` as shares in [0, 1] as in RobustBench, the latter the mean over
    all measured severities of the common corruptions; `corruptions_mce`, the mean over their types of the error summed
    over severities relative to that of the base, in percent (100 for the base); `corruptions`, the accuracy by type and
    severity; what it stores and what its training took. `left_out` names the types on which mCE has no number. Date
    and latencies are left out, so that equal runs leave equal files.
    """
    accuracies = tidy[tidy.measure == "accuracy"]
    return {
        "about": {name: value for name, value in ledger.about.items() if name not in ("date", "command")},
        "base": {"name": ledger.base, "digest": ledger.networks[ledger.base].digest},
        "classes": list(ledger.classes),
        "views": [
            {
                "name": view.name,
                "type": view.kind,
                "severity": view.severity,
                "group": view.group,
                "held_out": view.held_out,
                "images": len(view),
            }
            for view in ledger.views
        ],
        "definitions": {
            **{name: metrics.definition(name).sentence for name in dict.fromkeys(tidy["measure"])},
            **pools.MEANS,
            "intervals": [metrics.OF_CHANGES, metrics.OF_OTHERS],
        },
        "left_out": summary.left_out(summary.accuracies(tidy, ledger.base)),
        "networks": {name: _network(ledger, accuracies, name) for name in ledger.networks},
    }


def _network(ledger: Ledger, accuracies: pd.DataFrame, name: str) -> dict[str, Any]:
    own, base = (_by_type(accuracies, each) for each in (name, ledger.base))
    types = [kind for kind in own if kind in COMMON]
    row = ledger.networks[name]
    errors, before = (
        {kind: [100 - 100 * value for value in each[kind].values()] for kind in types} for each in (own, base)
    )
    relative = metrics.corruption_error(errors, before)
    values = [value for kind in types for value in own[kind].values()]
    clean = accuracies[(accuracies.network == name) & (accuracies["view"] == CLEAN)]["estimate"].iloc[0]
    return {
        "clean_acc": clean / 100,
        "corruptions_acc": sum(values) / len(values) if values else None,
        "corruptions_mce": None if math.isnan(relative.mean) else relative.mean,
        "corruptions": own,
        "method": row.method,
        "seed": row.seed,
        "digest": row.digest,
        "parameters": row.parameters,
        "bytes": row.bytes,
        "passes": row.passes,
        "facts": {name: value for name, value in row.facts.items() if name != LATENCY},
    }


def _by_type(accuracies: pd.DataFrame, network: str) -> dict[str, dict[str, float]]:
    """Return accuracies as shares by type and severity."""
    found: dict[str, dict[str, float]] = {}
    for row in accuracies[(accuracies.network == network) & (accuracies.severity > 0)].to_dict("records"):
        found.setdefault(str(row["view"]), {})[str(row["severity"])] = float(row["estimate"]) / 100
    return found
