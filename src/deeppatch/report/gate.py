"""The summary of requirements as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from deeppatch.ledger.requirements import Judgement


def gate_summary(
    network: str,
    base: str,
    judgements: Sequence[Judgement],
    table: pd.DataFrame,
    *,
    verdict: str,
    command: str,
    confident: bool = False,
) -> str:
    """Return which requirements a network meets, the accuracies of all networks, and how to repeat it, as Markdown.

    Args:
        network: The network that must meet the requirements.
        base: The network that it is compared with.
        judgements: What `judge` found for each requirement.
        table: The table of a ledger, a row for each network.
        verdict: What the repair does, in plain sentences.
        command: The command that repeats the comparison.
        confident: Whether the worse end of the interval had to meet the requirements.
    """
    broken = [each for each in judgements if not each.met]
    title = f"{len(broken)} of {len(judgements)} requirements broken" if broken else "All requirements met"
    end = "the worse end of the 95 % interval" if confident else "the estimate"
    rows = [
        f"| {_cell(each.requirement)} | {_cell(each).partition(': ')[2]} | {'yes' if each.met else '**no**'} |"
        for each in judgements
    ]
    numbers = table.reset_index()
    head = ["| " + " | ".join(map(_cell, numbers.columns)) + " |", "|---" + "|---:" * (len(numbers.columns) - 1) + "|"]
    body = ["| " + " | ".join(_number(value) for value in row) + " |" for row in numbers.itertuples(index=False)]
    parts = [
        f"## {title}: {network} against {base}",
        "",
        verdict,
        "",
        f"| required ({end}) | measured (95 % interval) | met |",
        "|---|---|---|",
        *rows,
        "",
        "Accuracy in percent; repaired and newly wrong in percent of all images:",
        "",
        *head,
        *body,
        "",
        f"`{command}`",
        "",
    ]
    return "\n".join(parts)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def _number(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.2f}"
    return _cell(value)
