"""Stages leave what they declare; conftest.py compares every other run of these tests, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deeppatch.cli.declared import CACHES, Folder, declaration
from deeppatch.cli.naming import IDENTITIES

SOURCES = Path(__file__).resolve().parents[2] / "src" / "deeppatch"


def test_every_stage_with_a_name_for_its_folder_declares_what_it_leaves(declared):
    assert declared.keys() == IDENTITIES.keys()


def test_the_chain_leaves_the_declared_files(chain, chain_lines, declared):
    for name in chain_lines:
        stage = chain.json(f"{name}/run.json")["stage"]
        folder = declaration(declared[stage], chain.at(name).name)
        assert folder is not None, name
        assert chain.files(name) - folder.sometimes.keys() == {*folder.files, "run.json"}
    assert "history.csv" in chain.files("pretrain")


def test_a_run_that_leaves_other_files_than_declared_is_found(pretrained, declared, monkeypatch):
    folder = next(folder for folder in declared["assess"] if "suspicion.png" in folder.files)
    monkeypatch.delitem(folder.files, "suspicion.png")
    with pytest.raises(AssertionError, match="suspicion.png is not declared"):
        pretrained.run("select -f activation")
    monkeypatch.setitem(folder.files, "more.csv", "what no run leaves")
    assert folder.problems(["ranking.json", "ranking.csv"]) == ["more.csv is missing"]


def test_patterns_match_names_with_values_and_whatever_follows():
    folder = Folder("correct-patch-KIND-METHOD[-ratioR]", "", {})
    for name in ("correct-patch-replace-taylor", "correct-patch-replace-taylor-ratio0.5-seed7-0a1b2c"):
        assert folder.matches(name)
    for name in ("correct-patch-replace", "correct-finetune", "my-correct-patch-replace-taylor"):
        assert not folder.matches(name)


def test_the_files_of_some_runs_only_are_named_in_the_code(declared):
    code = "".join(path.read_text() for path in SOURCES.rglob("*.py") if path.name != "command.py")
    names = {name for folders in declared.values() for folder in folders for name in folder.sometimes}
    assert names
    assert [name for name in names if f'"{name}"' not in code] == []


def test_the_caches_are_those_that_stages_keep():
    code = "".join(path.read_text() for path in (SOURCES / "cli").rglob("*.py"))
    assert set(re.findall(r'ContentCache\(model_folder\([\w.]+\) / "([\w-]+)"\)', code)) == CACHES.keys()
    assert code.count("ContentCache(") == len(CACHES)
