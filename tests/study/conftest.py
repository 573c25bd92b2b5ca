"""Tests of studies: those marked `study` run only where the marker is asked for, as `pipenv run test -m study` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "workflow" / "scripts"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave out whole studies, which have a step of continuous integration of their own."""
    if "study" in str(config.getoption("markexpr")):
        return
    left_out = [item for item in items if item.get_closest_marker("study")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
