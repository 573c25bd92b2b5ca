"""Why -r has nothing to go on with although an interrupted run lies beside: it was another run."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from deeppatch.artifacts import saved_settings
from deeppatch.cli.naming import hashed, readable_name
from deeppatch.stage import Stage


def starts_anew(stage: Stage, options: Any) -> str | None:
    """Return a line that says why a run with -r starts anew, where runs with other options were interrupted."""
    name: str = readable_name(stage.facts["stage"], options)
    pattern = re.compile(rf"\.{re.escape(name)}(-[0-9a-f]{{6}})?\.unfinished")
    beside = stage.folder.parent.glob(f".{glob.escape(name)}*.unfinished")
    others = [path for path in sorted(beside) if pattern.fullmatch(path.name)]
    if stage.unfinished in others or not others:
        return None
    listed = ", ".join(f"{path} ({_difference(path, stage, options)})" for path in others)
    return f"-r finds nothing to go on with, and this run starts anew: interrupted were others, {listed}"


def _difference(unfinished: Path, stage: Stage, options: Any) -> str:
    now: dict[str, Any] = stage.facts["settings"]
    files = [name for name in hashed(stage.facts["stage"], options) if isinstance(getattr(options, name, None), Path)]
    for path in sorted(unfinished.glob("checkpoint*.pt")):
        if (before := saved_settings(path)) is not None:
            changed = [name for name, value in now.items() if before.get(name) != value]
            return f"with another {', '.join(changed)}" if changed else _content(files)
    return "with other options, or other files"


def _content(files: list[str]) -> str:
    named = " or ".join(f"--{name}" for name in files)
    return f"with another content of {named}" if named else "from other files of earlier stages"
