"""The report of compare: the ledger as CSV, JSON and printed tables, a verdict, and the requirements."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from deeppatch import metrics
from deeppatch.cli.compare.handover import hand_over
from deeppatch.cli.context import Context
from deeppatch.errors import RequirementsBroken
from deeppatch.ledger import pools, requirements, summary
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.ledger.streams import GAUSSION
from deeppatch.progress import info
from deeppatch.report import ledger_json, scores
from deeppatch.report.gate import gate_summary
from deeppatch.report.judging import judge_network, judged_network
from deeppatch.report.limits import remarks

ON_CLEAN = ("worst_class", "ece", "ece_mass", "nll", "brier")
ON_ALL = ("mean_corruption_error", "mce", "relative_mce")
HEADLINES = (CLEAN, pools.BLURRED, pools.ALL, pools.DEGRADED, pools.HELD_OUT, MIXED)


def write_report(context: Context, ledger: Ledger, target: str | None, missing: Sequence[str] = ()) -> None:
    """Write ledger.csv, ledger.json, gate.md, the page and the record; print tables, verdict and requirements.

    Args:
        context: The run.
        ledger: The ledger.
        target: The network that requirements are about, if there is one.
        missing: Which baselines are missing, and how to make them.

    Raises:
        RequirementsBroken: When the network `target` does not meet a requirement; everything is written before.
    """
    options, stage = context.options, context.stage
    tidy = ledger.frame()
    table = summary.table(tidy)
    stage.write_table("ledger.csv", tidy)
    stage.write_json("ledger.json", ledger_json.contents(ledger, tidy))
    judgements = []
    judged = judged_network(ledger, tidy, target)
    said = judge_network(tidy, judged, ledger.base)
    if options.require and target is not None:
        required = [requirements.requirement(text) for text in options.require]
        numbers = summary.numbers(tidy, target, ledger.networks[target].bytes)
        judgements = requirements.judge(required, numbers, confident=options.confident)
        content = gate_summary(
            target,
            ledger.base,
            judgements,
            table,
            verdict=str(said),
            command=options.command,
            confident=options.confident,
        )
        stage.write("gate.md", content.encode())
    hand_over(context, ledger, tidy, (judged, said), judgements=judgements, chosen_here=target is None, notes=missing)
    stage.finish()

    print(scores.format_table(table.reset_index()))
    print(f"\nagainst {ledger.base}, with 95 % intervals over images")
    print(changes(tidy, ledger.base).to_string(index=False))
    print("\nfurther measures")
    print(scores.format_table(further(tidy, ledger.base)))
    print("\n" + "\n".join([*definitions(tidy, ledger.base), metrics.OF_CHANGES, metrics.OF_OTHERS]))
    for remark in [*remarks(ledger), *missing]:
        print(f"\n{remark}")
    print(f"\n{said}")
    images = len(ledger.view(CLEAN))
    info(f"{len(ledger.networks)} networks, {len(ledger.views)} views of {images} test images; in {stage.folder}")
    for each in judgements:
        info(f"{'met' if each.met else 'BROKEN'}: {each}")
    if broken := [str(each) for each in judgements if not each.met]:
        raise RequirementsBroken(f"{target}: {line}" for line in broken)


def headlines(tidy: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the columns of the table of changes: title, measure and view."""
    there = set(tidy["view"])
    only_blur = set(tidy[tidy.severity > 0]["view"]) == {GAUSSION}  # then degraded is the same as blurred
    views = [name for name in HEADLINES if name in there and not (name == pools.DEGRADED and only_blur)]
    stream = summary.changes_view(tidy)
    return [(view, "change", view) for view in views] + [
        (title, name, stream) for name, title in summary.TITLES.items()
    ]


def changes(tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Return what each network gains over the base in the means that matter most, with intervals, as text."""
    means = {(row["network"], row["view"], row["measure"]): row for row in tidy[tidy.severity == 0].to_dict("records")}
    rows: list[dict[str, Any]] = []
    for network in dict.fromkeys(tidy["network"]):
        keys = {title: (network, view, measure) for title, measure, view in headlines(tidy)}
        cells = {title: _with_interval(means[key], key[2]) if key in means else "-" for title, key in keys.items()}
        rows += [{"network": network, **cells}] if network != base else []
    return pd.DataFrame(rows)


def further(tidy: pd.DataFrame, base: str) -> pd.DataFrame:
    """Return measures of clean images, and errors relative to the base over the 15 types where they are there."""
    wanted = [(CLEAN, measure) for measure in ON_CLEAN] + [(pools.ALL, measure) for measure in ON_ALL]
    rows = []
    for network, own in tidy[tidy.severity == 0].groupby("network", sort=False):
        values = {(row["view"], row["measure"]): float(row["estimate"]) for row in own.to_dict("records")}
        if network == base and (pools.ALL, "mean_corruption_error") in values:
            values[pools.ALL, "mce"] = 100.0  # by definition
        titles = {key: metrics.definition(key[1]).title for key in wanted}
        titles[pools.ALL, "mce"] += f" (base {base})"
        found = {title: values[key] for key, title in titles.items() if key in values}
        rows += [{"network": network, **found}] if found else []
    return pd.DataFrame(rows)


def definitions(tidy: pd.DataFrame, base: str) -> list[str]:
    """Return what the columns of the printed tables mean, a line for each, and which types mCE leaves out."""
    shown = {*summary.columns_of(list(tidy["view"])), *(name for name, _measure, _view in headlines(tidy))}
    lines = [f"{name}: {text}" for name, text in pools.MEANS.items() if name in shown]
    measured = set(tidy["measure"])
    lines += metrics.explained(["accuracy", "change"])
    lines += [
        f"{metrics.definition(name).title}: of {view}; {metrics.explained([name])[0].partition(': ')[2]}"
        for names, view in ((ON_CLEAN, CLEAN), (ON_ALL, pools.ALL))
        for name in names
        if name in measured
    ]
    lines += [
        f"left out of {metrics.definition(measure).title} here: {', '.join(kinds)}"
        for measure, kinds in summary.left_out(summary.accuracies(tidy, base)).items()
    ]
    return lines + [
        f"{title}: of {summary.changes_view(tidy)}; {line.partition(': ')[2]}"
        for title, line in zip(summary.TITLES.values(), metrics.explained(summary.TITLES), strict=True)
    ]


def _with_interval(row: dict[Hashable, Any], measure: str) -> str:
    sign = "+" if measure == "change" else ""
    return f"{row['estimate']:{sign}.2f} ({row['low']:{sign}.2f} to {row['high']:{sign}.2f})"
