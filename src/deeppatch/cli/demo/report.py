"""The report of the demo: one closing line for each method, from the files that the stages have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deeppatch.progress import info
from deeppatch.report import closing
from deeppatch.stage import Stage


def report(stage: Stage, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write closing.json and closing.md, and print the lines.

    `found` has the metrics.json of the runs of each stage, by the name of the stage and the action of decompose.
    """
    lines = [
        closing.switched_network(found["evaluate"][0]),
        closing.decomposition(found["decompose validate"][0], found["decompose finetune"][0]),
        closing.modules(found["modularize"][0], found["compose"][0]),
        closing.hybrid(found["relearn"]),
    ]
    stage.write_json("closing.json", {"unit": "percentage points", "lines": [line.facts() for line in lines]})
    stage.write("closing.md", "".join(f"- **{line.method}**: {line.text}\n" for line in lines).encode())
    stage.finish()
    print("\nwhat was gained and what it cost, in percentage points with 95 % intervals\n")
    print("\n\n".join(str(line) for line in lines))
    info(f"written to {stage.folder}")
