"""The report of compare: the ledger as CSV, JSON and printed tables, a verdict, and the requirements."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.errors import RequirementsBroken
from deeppatch.ledger import requirements, summary
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.metrics import Interval
from deeppatch.progress import info
from deeppatch.report import ledger_json, scores
from deeppatch.report.gate import gate_summary
from deeppatch.report.verdict import Verdict, verdict

HEADLINES = (CLEAN, summary.BLURRED, summary.ALL, summary.DEGRADED, summary.HELD_OUT, MIXED)


def write_report(context: Context, ledger: Ledger, target: str | None) -> None:
    """Write ledger.csv, ledger.json, gate.md and the record; print tables, definitions, verdict and requirements.

    Raises:
        RequirementsBroken: When the network `target` does not meet a requirement; everything is written before.
    """
    options, stage = context.options, context.stage
    tidy = ledger.frame()
    table = summary.table(tidy)
    stage.write_table("ledger.csv", tidy)
    stage.write_json("ledger.json", ledger_json.contents(ledger, tidy))
    # the place for what is handed over: report.html, the model card, and sinks
    judgements = []
    judged = target or best(tidy)
    said = judge_network(tidy, judged, ledger.base)
    if options.require and target is not None:
        required = [requirements.requirement(text) for text in options.require]
        numbers = summary.numbers(tidy, target, ledger.networks[target].bytes)
        judgements = requirements.judge(required, numbers, confident=options.confident)
        content = gate_summary(
            target, ledger.base, judgements, table, verdict=str(said), command=options.command,
            confident=options.confident,
        )  # fmt: skip
        stage.write("gate.md", content.encode())
    stage.finish()

    print(scores.format_table(table.reset_index()))
    print(f"\nagainst {ledger.base}, with 95 % intervals over images")
    print(changes(tidy, ledger.base).to_string(index=False))
    print("\n" + "\n".join(f"{name}: {text}" for name, text in definitions(tidy).items()))
    print(f"\n{said}")
    images = len(ledger.view(CLEAN))
    info(f"{len(ledger.networks)} networks, {len(ledger.views)} views of {images} test images; in {stage.folder}")
    for each in judgements:
        info(f"{'met' if each.met else 'BROKEN'}: {each}")
    if broken := [str(each) for each in judgements if not each.met]:
        raise RequirementsBroken(f"{target}: {line}" for line in broken)


def best(tidy: pd.DataFrame) -> str:
    """Return the network that gains most over the base on degraded images, or on clean ones where there are only these."""
    gained = tidy[(tidy.measure == summary.GAINED) & (tidy.severity == 0)]
    view = summary.DEGRADED if summary.DEGRADED in set(gained["view"]) else CLEAN
    own = gained[gained["view"] == view]
    return str(own.sort_values("estimate", kind="stable")["network"].iloc[-1])


def judge_network(tidy: pd.DataFrame, network: str, base: str) -> Verdict:
    """Return the verdict on a network: on blurred images where the published blur is the only degradation."""
    own = tidy[(tidy.network == network) & (tidy.measure == summary.GAINED) & (tidy.severity == 0)]
    gained = {str(row["view"]): Interval(row["estimate"], row["low"], row["high"]) for row in own.to_dict("records")}
    of_blur, degraded = gained.get(summary.BLURRED), gained.get(summary.DEGRADED)
    on = summary.BLURRED if of_blur == degraded else summary.DEGRADED
    return verdict(network, gained[CLEAN], degraded, on=on, base=base)


def changes(tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Return what each network gains over the base in the means that matter most, with intervals, as text."""
    there = set(tidy["view"])
    columns = [(name, summary.GAINED, name) for name in HEADLINES if name in there]
    if {summary.BLURRED, summary.DEGRADED} <= there and set(tidy[tidy.severity > 0]["view"]) == {"gaussion"}:
        columns = [each for each in columns if each[0] != summary.DEGRADED]
    stream = MIXED if MIXED in there else CLEAN
    columns += [(name, name, stream) for name in (summary.REPAIRED, summary.BROKEN)]
    rows: list[dict[str, Any]] = []
    means = {(row["network"], row["view"], row["measure"]): row
             for row in tidy[tidy.severity == 0].to_dict("records")}  # fmt: skip
    for network in dict.fromkeys(tidy["network"]):
        if network == base:
            continue
        row = {"network": network}
        for title, measure, view in columns:
            key = (network, view, measure)
            row[title] = _with_interval(means[key], measure) if key in means else "-"
        rows.append(row)
    return pd.DataFrame(rows)


def definitions(tidy: pd.DataFrame) -> dict[str, str]:
    """Return what the columns of the printed tables mean."""
    there = set(tidy["view"])
    views = {name: text for name, text in summary.VIEWS.items() if name in there}
    return {**views, **{name: summary.DEFINITIONS[name] for name in (summary.REPAIRED, summary.BROKEN)}}


def _with_interval(row: dict[Hashable, Any], measure: str) -> str:
    sign = "+" if measure == summary.GAINED else ""
    return f"{row['estimate']:{sign}.2f} ({row['low']:{sign}.2f} to {row['high']:{sign}.2f})"
