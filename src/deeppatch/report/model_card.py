"""The model card: what a ledger says of a repaired network, as Markdown with a YAML head."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import deeppatch
from deeppatch import metrics
from deeppatch.ledger import pools
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.report import page_tables
from deeppatch.report.limits import limits
from deeppatch.report.page_tables import Table, facts
from deeppatch.report.verdict import Verdict

MEASURED = (CLEAN, pools.BLURRED, pools.ALL, pools.DEGRADED, pools.HELD_OUT, MIXED)  # in the head
_MARKDOWN = re.compile(r"([\\`*_\[\]{}|#~!])")


def model_card(ledger: Ledger, tidy: pd.DataFrame, target: str, said: Verdict, *, chosen_here: bool = False) -> str:
    """Return the model card of a network, with the keys of model cards in its head.

    `model-index` has the accuracies in percent on clean images and on the means over degradations. What comes from
    users, such as names and commands, is escaped.

    Args:
        ledger: The ledger.
        tidy: Its tidy table.
        target: The network that the card is of.
        said: The verdict on it.
        chosen_here: Whether it was chosen by the test images of the ledger.
    """
    numbers = page_tables.numbers_of(tidy)
    row, about = ledger.networks[target], ledger.about
    made = {**about, **{f"{target}: {name}": value for name, value in {"digest": row.digest, **row.facts}.items()}}
    parts = [
        "---",
        *_head(ledger, numbers, target),
        "---",
        "",
        f"# {text(target)}",
        "",
        text(said.found),
        text(said.conclusion),
        "",
        *([f"{text(target)}: {text(row.facts['remark'])}.", ""] if row.facts.get("remark") else []),
        f"A repair of {text(about.get('model', ledger.base))}, an image classifier with {len(ledger.classes)} classes, "
        f"measured on {len(ledger.view(CLEAN)):,} test images of {text(about.get('dataset', 'one data set'))} and "
        f"compared with {text(ledger.base)} on the same ones.",
        "",
        "## Accuracy",
        "",
        f"In percent; in brackets what is gained over {text(ledger.base)}, in percentage points, and its 95 % interval "
        f"(of {text(ledger.base)} itself, and of what is repaired and newly wrong, their own intervals).",
        "",
        *_table(page_tables.accuracies(ledger, numbers)),
        "",
        *(f"- {text(each)}" for each in (metrics.OF_CHANGES, metrics.OF_OTHERS)),
        "",
        "## Cost",
        "",
        *_table(page_tables.costs(ledger)),
        "",
        "## Limits",
        "",
        *(f"- {text(each)}" for each in limits(ledger, target, chosen_here=chosen_here)),
        "",
        "## How it was made",
        "",
        *_block(made),
        "",
        f"Made by deeppatch {deeppatch.__version__}; report.html has charts and images, ledger.csv all numbers.",
        "",
    ]
    return "\n".join(parts)


def text(value: object) -> str:
    """Return text on one line that Markdown prints as it is, with neither markup nor HTML.

    >>> print(text("a|b <script> *c*"))
    a\\|b &lt;script&gt; \\*c\\*
    """
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _head(ledger: Ledger, numbers: page_tables.Numbers, target: str) -> list[str]:
    """Return the head, whose values are JSON, which is YAML, too."""
    dataset = str(ledger.about.get("dataset", "unknown"))
    task = {"type": "image-classification", "name": "Image classification"}
    lines = [
        f"model_name: {_value(target)}",
        "library_name: deeppatch",
        "pipeline_tag: image-classification",
        f"tags: {_value(['image-classification', 'robustness', 'model-repair'])}",
        f"datasets: {_value([dataset])}",
        f"metrics: {_value(['accuracy'])}",
        "model-index:",
        f"- name: {_value(target)}",
        "  results:",
    ]
    for view in MEASURED:
        if (found := numbers.get((target, view, 0, "accuracy"))) is not None:
            metric = {"type": "accuracy", "name": f"accuracy on {view} images, in percent", "value": round(found[0], 4)}
            name = dataset if view == CLEAN else f"{dataset}, {view}"
            lines += [
                f"  - task: {_value(task)}",
                f"    dataset: {_value({'type': dataset, 'name': name, 'split': 'test'})}",
                f"    metrics: {_value([metric])}",
            ]
    return lines


def _value(value: Any) -> str:
    """Return a value as JSON on one line; characters that no text shows become spaces."""
    written = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else " " for each in written)


def _table(content: Table) -> list[str]:
    head = "| " + " | ".join(map(text, content.columns)) + " |"
    rows = [f"| {text(name)} | " + " | ".join(text(cell) for cell in cells) + " |" for name, cells in content.rows]
    notes = [f"- {text(name)}: {text(note)}" for name, note in content.notes]
    return [head, "|---" + "|---:" * (len(content.columns) - 1) + "|", *rows, "", *notes]


def _block(values: Mapping[str, Any]) -> Sequence[str]:
    """Return facts as a block of code, behind a fence that none of them can end."""
    lines = [f"{name}: {' '.join(value.split())}" for name, value in facts(values)]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *lines, fence]
