"""A search is one process that never waits for another (specification, faults 5, 7 and 8)."""

from __future__ import annotations

import ast
from pathlib import Path

from deeppatch import modular
from deeppatch.cli import main

ELSEWHERE = {
    "multiprocessing", "concurrent", "threading", "subprocess", "asyncio", "joblib", "pickle", "DataLoader", "sleep"
}  # fmt: skip
SOURCES = [*Path(modular.__file__).parent.glob("*.py")]
SOURCES += Path(main.__file__).with_name("modularize").glob("*.py")


def names(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "name", "module"):
            found |= set(str(getattr(node, field, "")).split("."))
    return found


def test_no_process_loader_signal_file_or_pause_is_in_a_search():
    assert len(SOURCES) > 10
    assert {path.name: found for path in SOURCES if (found := names(path) & ELSEWHERE)} == {}
