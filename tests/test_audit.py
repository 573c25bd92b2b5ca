"""The audit of the lock file: what is asked, and what is told; nothing is sent from here."""

from __future__ import annotations

import doctest
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit():
    specification = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_its_examples_are_right(audit):
    assert doctest.testmod(audit) == (0, 8)


def test_every_package_of_the_lock_is_asked_for_once(audit):
    lock = json.loads((ROOT / "Pipfile.lock").read_bytes())
    asked = [line.partition("==")[0] for line in audit.requirements(lock)]
    assert sorted(asked) == sorted(lock["default"].keys() | lock["develop"].keys())
    assert "torch==2.13.0" in {line.partition(" ;")[0] for line in audit.requirements(lock)}


@pytest.mark.parametrize("output", ["", "{", "[]", "{}"])
def test_no_answer_is_said(audit, output):
    status, lines = audit.told(output, "first\nConnectionError: no route\n")
    assert status == 0
    assert lines == [
        "NOT AUDITED: the list of vulnerabilities cannot be reached (ConnectionError: no route); repeat it elsewhere"
    ]
