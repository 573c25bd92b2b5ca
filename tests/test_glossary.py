"""The glossary has its terms, and where it says that they live, they live."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| paper |"))
]
NAMED = sorted({(row[4].strip("`"), name) for row in ROWS for name in re.findall(r"`([A-Za-z]\w*_?\w*)`", row[2])})
OPTIONS = sorted({name for row in ROWS for name in re.findall(r"`(--?\w+)", row[2])})


def test_there_are_at_least_forty_terms_each_with_all_that_a_row_says():
    assert len(ROWS) >= 40
    assert {len(row) for row in ROWS} == {5}
    assert all(all(row) for row in ROWS)
    assert {row[0] for row in ROWS} == {"DP", "DD", "CS", "HR", "-"}


@pytest.mark.parametrize("module", sorted({row[4] for row in ROWS}))
def test_every_named_module_exists(module):
    assert re.fullmatch(r"`deeppatch(\.\w+)+`", module)
    assert importlib.util.find_spec(module.strip("`")) is not None


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_every_name_in_the_code_is_known_to_its_module(module, name):
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert re.search(rf"\b{name}\b", Path(str(spec.origin)).read_text())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_one_of_a_stage(option):
    sources = [path.read_text() for path in (ROOT / "src" / "deeppatch" / "cli").rglob("*.py")]
    assert any(f'"{option}"' in source for source in sources)
