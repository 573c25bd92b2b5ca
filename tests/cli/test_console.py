from __future__ import annotations

import importlib
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import deeppatch
from deeppatch.cli import main
from deeppatch.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HYBRID = ["annotate", "relearn"]


def console(monkeypatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["deeppatch", *arguments])
    with pytest.raises(SystemExit) as end:
        main.console()
    return end.value.code


def test_the_package_installs_the_console_as_deeppatch():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert list(scripts) == ["deeppatch"]
    module, name = scripts["deeppatch"].split(":")
    assert getattr(importlib.import_module(module), name) is main.console


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["-h"], 0), (["--help"], 0)])
def test_without_a_stage_it_lists_them_in_order(monkeypatch, capsys, arguments, status):
    assert console(monkeypatch, *arguments) == status
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "usage: deeppatch STAGE [options]"
    stages = [line.split()[0] for line in lines if line.endswith(".py)")]
    assert stages == list(main.COMMANDS.values())
    assert stages == [
        "pretrain", "assess", "correct", "evaluate", "export", "influence", "decompose", "modularize", "compose",
        *HYBRID, "compare", "demo",
    ]  # fmt: skip
    named = [line.split("(src/")[1].removesuffix(".py)") for line in lines if line.endswith(".py)")]
    assert named == list(main.COMMANDS)
    assert all((ROOT / "src" / f"{script}.py").is_file() for script in named)


def test_every_script_under_src_is_a_stage():
    assert {path.stem for path in (ROOT / "src").glob("*.py")} == main.COMMANDS.keys()


def test_commands_in_messages_are_those_of_the_folder_that_it_is_started_from(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(main, "guarded", lambda _script, _arguments, prefix: seen.append(prefix) or 0)
    for folder, typed in ((ROOT, "src/eval.py"), (tmp_path, str(ROOT / "src/eval.py")), (tmp_path, "a {b}/eval.py")):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [typed, "-h"])
        with pytest.raises(SystemExit):
            main.main("eval")
    prefixes = [prefix.format(script="select", stage="assess") for prefix in seen]
    assert prefixes == ["python src/select.py", f"python {ROOT}/src/select.py", "python 'a {b}'/select.py"]


def test_an_unknown_stage_is_one_line_with_the_choices(monkeypatch, capsys):
    assert console(monkeypatch, "repair", "--help") == 2
    said = capsys.readouterr()
    assert said.out == ""
    later = "decompose, modularize, compose, annotate, relearn, compare, demo"
    choices = f"pretrain, assess, correct, evaluate, export, influence, {later}"
    assert said.err == f"error: repair: no such stage; choose from {choices}\n"
    assert console(monkeypatch, "pretrian") == 2
    assert capsys.readouterr().err == (
        f"error: pretrian: no such stage (did you mean pretrain?); choose from {choices}\n"
    )


@pytest.mark.parametrize("arguments", [["--version"], ["demo", "--version"]])
def test_it_tells_its_version(monkeypatch, capsys, arguments):
    assert console(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"deeppatch {deeppatch.__version__}\n"


@pytest.mark.parametrize(("script", "stage"), main.COMMANDS.items())
def test_stages_and_scripts_names_open_the_same_command(monkeypatch, capsys, script, stage):
    texts = []
    for name in (stage, script):
        assert console(monkeypatch, name, "--help") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"usage: deeppatch {stage} ")
    assert f"\nexample:\n  deeppatch {stage} " in texts[0]
    assert "src/" not in texts[0]


def test_a_message_spells_commands_as_they_were_called(monkeypatch, capsys, tmp_path):
    assert console(monkeypatch, "assess", "-m", "resnet8", "--output_dir", str(tmp_path)) == 2
    weights = tmp_path / "digits" / "resnet8" / "pretrain" / "weights.safetensors"
    assert capsys.readouterr().err == (
        f"error: {weights} is missing; make it with: deeppatch pretrain -m resnet8 -d digits --output_dir {tmp_path}\n"
    )


def test_a_stage_run_by_name_is_recorded_by_name(empty, monkeypatch, capsys):
    script, arguments = empty.arguments("eval -e 1 --limit 3")
    assert script == "eval"
    monkeypatch.setenv("DEEPPATCH_THREADS", "1")
    assert console(monkeypatch, "pretrain", *arguments) == 0
    assert "accuracy in percent on 3 test images" in capsys.readouterr().out
    assert empty.json("pretrain-limit3/run.json")["command"].startswith("deeppatch pretrain -m resnet8 ")


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(main, "run", lambda *_given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.guarded("eval", [], "python src/{script}.py")


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    def refuse(*_given):
        raise main.UserError("first\n  second\n")

    monkeypatch.setattr(main, "run", refuse)
    assert main.guarded("eval", [], "python src/{script}.py") == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (None, 0, "UserWarning: this is slow\nUserWarning: and old\n"),
        (UserError("give another file"), 2, "error: give another file\n"),
        (OSError(28, "", "w"), 2, "error: no space is left for w; free some and run again with -r\n"),
    ],
)
def test_what_libraries_warn_of_does_not_precede_the_one_line(monkeypatch, capsys, end, status, said):
    def warn(*_given):
        for text in ("this is slow", "and old", "this is slow"):
            warnings.warn(text, stacklevel=1)
        if end:
            raise end

    monkeypatch.setattr(main, "run", warn)
    assert main.guarded("eval", [], "python src/{script}.py") == status
    assert capsys.readouterr().err == said
