"""README's commands parse, its tree is the repository's, its scripts are the Pipfile's."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from deeppatch.cli.main import COMMANDS as STAGES
from deeppatch.cli.parsing import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SCRIPTS = tomllib.loads((ROOT / "Pipfile").read_text())["scripts"]
LINES = re.findall(r"^(?:\$ )?((?:python|pipenv|deeppatch) .*)$", README, re.MULTILINE)
SPANS = re.findall(r"`([^`\n]+)`", README) + LINES
COMMANDS = sorted({span for span in SPANS if re.match(r"python src/\w+\.py|pipenv run \w+|deeppatch \w+ ", span)})


def expand(command: str) -> list[str]:
    """Replace `pipenv run NAME` by the script it stands for."""
    words = shlex.split(command.split("  #")[0])
    return shlex.split(SCRIPTS[words[2]]) + words[3:] if words[:2] == ["pipenv", "run"] else words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    words = expand(command)
    if words[:2] in (["python", "-m"],) or words[0] in ("ruff", "mypy"):
        return
    if words[1].startswith("benchmarks/"):
        source = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in source for word in words[2:] if word.startswith("-"))
        return
    script = Path(words[1]).stem if words[0] == "python" else {"pretrain": "eval"}[words[1]]
    assert words[0] == "deeppatch" or (ROOT / words[1]).is_file()
    options = parse(
        importlib.import_module(f"deeppatch.cli.{STAGES[script]}.command"), words[2:], "python src/{script}.py"
    )
    assert options.model


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 12


def test_the_two_lines_of_the_start_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for line in ("pip install pipenv && pipenv sync && pipenv run demo", "pipenv sync --dev && pipenv run test"):
        assert f"\n{line}\n" in README
        assert f"\n{line}\n" in ci


def test_published_commands_are_the_pipenv_scripts():
    assert SCRIPTS["pretrain"] == "python src/eval.py -m resnet32 -d cifar10"
    assert SCRIPTS["assess"] == "python src/select.py -m resnet32 -d cifar10 -f perfloss"
    tail = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
    assert SCRIPTS["correct"] == f"python src/correct.py {tail}"
    assert SCRIPTS["evaluate"] == f"python src/switch.py {tail}"
    assert {"demo", "test", "lint"} <= SCRIPTS.keys()


def test_the_tree_names_every_source_file_once():
    tree = README[README.index("## Files") :]
    for path in sorted(ROOT.glob("src/**/*.py")):
        if path.name == "__init__.py" or "egg-info" in str(path):
            continue
        assert len(re.findall(rf"(?<![\w/]){re.escape(path.name)}\b", tree)) >= 1, path
    named = set(re.findall(r"(\w+\.py)\b", tree))
    assert named <= {path.name for path in ROOT.glob("src/**/*.py")}


def test_the_lock_file_installs_for_anyone():
    lock = (ROOT / "Pipfile.lock").read_text()
    assert "+cpu" not in lock
    assert re.search(r'"torch": \{[^}]*"version": "==2\.13\.0"', lock)
    assert re.search(r'"torchvision": \{[^}]*"version": "==0\.28\.0"', lock)
    assert "PYTHONPATH" not in (ROOT / ".env").read_text()
