"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["splitting", "modules", "joining"])
def test_examples_run(name, monkeypatch):
    monkeypatch.setattr(
        "deeppatch.progress.print", lambda *_line, **_how: None, raising=False
    )  # no part of the examples
    results = doctest.testmod(importlib.import_module(f"deeppatch.modular.{name}"))
    assert results.attempted > 3
    assert results.failed == 0
