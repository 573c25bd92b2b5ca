"""The inputs of the demo's closing lines: the metrics.json that each of its stages has left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeppatch.cli.locating import locate_all, run_folder
from deeppatch.cli.parsing import parse_stage
from deeppatch.stage import Stage

METRICS = "metrics.json"


def left_by(stage: str, words: Sequence[str], prefix: str) -> tuple[Path, str]:
    """Return the folder that a stage leaves when it is run with these words, and the command that makes it."""
    options = parse_stage(stage, words, prefix)
    return run_folder(stage, options, locate_all(stage, options)), options.command


def read_metrics(own: Stage, stage: str, words: Sequence[str], prefix: str) -> dict[str, Any]:
    """Read, for the stage `own`, the metrics.json that a stage has left when it was run with these words."""
    folder, command = left_by(stage, words, prefix)
    return own.read_json(folder / METRICS, command)
