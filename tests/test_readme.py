"""Every command in a page is understood, and the set-up is the one that README shows; test_docs.py checks links."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from deeppatch.cli.main import COMMANDS
from deeppatch.cli.options import SCRIPTS
from deeppatch.cli.parsing import parse
from deeppatch.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("benchmarks/*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
PIPFILE = tomllib.loads((ROOT / "Pipfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
START = (
    r"(?:python (?:-m|src/|benchmarks/|docs/|examples/)|pipenv \w+ |deeppatch [\w-]+|torchrun |pip install "
    r"|ruff \w+|mypy$|mkdocs |codespell|pre-commit )"
)
PATTERN = re.compile(r"\[options\]|\.\.\.$")  # not a command, but how commands are spelled


def commands(page: str) -> set[str]:
    """Every command of a page, in lines and in code spans; one for each value of a loop's variable."""
    lines = [line.strip() for line in re.findall(r"^(?:\$ )? *(.*)$", page, re.MULTILINE)]
    found = [part for line in lines for part in line.split(" && ") if re.match(START, part)]
    found += [span for span in re.findall(r"`([^`\n]+)`", page) if re.match(START, span)]
    loops: dict[str, list[str]] = {}
    for name, values in re.findall(r"^ *for (\w+) in ([^;]+); do$", page, re.MULTILINE):
        loops[name] = [*loops.get(name, []), *values.split()]
    found = [command for command in found if not PATTERN.search(command)]
    return {each for command in found for each in expanded(command.split("  #")[0].strip(), loops)}


def expanded(command: str, loops: dict[str, list[str]]) -> list[str]:
    """Return the command with every combination of the values that its variables take."""
    variable = re.search(r"\$(\w+)", command)
    if not variable:
        return [command]
    each_value = [command.replace(variable[0], value) for value in loops[variable[1]]]
    return [each for value in each_value for each in expanded(value, loops)]


ALL = sorted(set().union(*(commands(page.read_text()) for page in PAGES)))
LACKING = {
    "decompose": ["validate"],
    "bench-rankings": ["--weights", "FILE"],
    "bench-repair": ["--weights", "FILE"],
    "study": ["demo"],
}  # what scripts of the Pipfile leave open


def check(words: list[str]) -> None:
    """Raise unless a command can be run as it is spelled: tools, scripts, modules, paths and options are there."""
    tools = {
        "pipenv": check_pipenv, "pip": check_installation, "python": check_python, "torchrun": check_torchrun,
        "deeppatch": check_console, "ruff": check_ruff, "mypy": check_mypy, "mkdocs": check_mkdocs,
        "codespell": check_codespell, "pre-commit": check_pre_commit,
    }  # fmt: skip
    tools[words[0]](words[1:])


def check_pipenv(words: list[str]) -> None:
    """Check what `pipenv run NAME` stands for, a script or a tool, or that pipenv has the action."""
    action, *rest = words
    if action == "run":
        check(shlex.split(PIPFILE["scripts"].get(rest[0], rest[0])) + rest[1:])
    assert action in ("run", "sync", "lock", "install"), action


def check_python(words: list[str]) -> None:
    """Check a module, a benchmark or a script with its arguments."""
    file, *rest = words
    if file == "-m":
        check_module(rest[0], rest[1:])
    elif file.startswith(("benchmarks/", "docs/", "workflow/")):
        benchmark(ROOT / file).parse_args(rest)
    elif file.startswith("examples/"):
        assert (ROOT / file).is_file(), file
        assert rest == []
    elif file == ".ci/audit.py":
        assert rest == []
    else:
        assert (ROOT / file).is_file(), file
        check_stage(COMMANDS[Path(file).stem], rest)


def check_torchrun(words: list[str]) -> None:
    """Check the script that torchrun starts."""
    check_python(words[next(index for index, word in enumerate(words) if word.startswith("src/")) :])


def check_ruff(words: list[str]) -> None:
    """Check ruff's action and paths."""
    assert "ruff" in PIPFILE["dev-packages"]
    assert words[0] in ("check", "format"), words[0]
    check_paths(words[1:])


def check_mypy(words: list[str]) -> None:
    """Check mypy's paths."""
    assert "mypy" in PIPFILE["dev-packages"]
    check_paths(words)


def check_mkdocs(words: list[str]) -> None:
    """Check what mkdocs does."""
    assert "mkdocs-material" in PIPFILE["dev-packages"]
    assert words[0] in ("build", "serve"), words[0]
    assert set(words[1:]) <= {"--strict"}, words


def check_codespell(words: list[str]) -> None:
    """Check the paths of codespell."""
    assert "codespell" in PIPFILE["dev-packages"]
    check_paths(words)


def check_pre_commit(words: list[str]) -> None:
    """Check what pre-commit does."""
    assert "pre-commit" in PIPFILE["dev-packages"]
    assert words[0] in ("install", "run"), words[0]
    assert set(words[1:]) <= {"--all-files"}, words


def check_stage(stage: str, arguments: list[str]) -> None:
    """Parse a stage's arguments as the stage does it."""
    if arguments == ["--help"]:
        return
    assert parse(importlib.import_module(f"deeppatch.cli.{stage}.command"), arguments, "python src/{script}.py").model


def check_console(words: list[str]) -> None:
    """Check `deeppatch STAGE ...`, and what the console script answers by itself."""
    stage, *arguments = words
    if stage == "--print-completion":
        assert arguments in (["bash"], ["zsh"]), arguments
    elif stage == "--version":
        assert arguments == []
    elif stage != "STAGE":
        assert stage in SCRIPTS, stage
        check_stage(stage, arguments)


def check_module(module: str, arguments: list[str]) -> None:
    """Check that `python -m MODULE` finds its module and the paths that it is given."""
    assert importlib.util.find_spec(module) is not None, module
    check_paths([word for word in arguments if "/" in word or word.endswith(".py") or word == "."])


def check_installation(words: list[str]) -> None:
    """Check that this package has the extras that are installed with it."""
    assert words[0] == "install"
    for word in words[1:]:
        if match := re.fullmatch(r"(?:\.|deeppatch)\[(.+)\]", word):
            assert set(match[1].split(",")) <= PROJECT["optional-dependencies"].keys()
        else:
            assert word in (".", "pipenv"), word


def check_paths(words: list[str]) -> None:
    """Check that every word that is no option names something in the repository."""
    for word in words:
        assert word.startswith("-") or (ROOT / word).exists(), word


def benchmark(path: Path) -> argparse.ArgumentParser:
    """Return the parser of a benchmark, or of another script, which does not run."""
    name = f"{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(path.parent))
            sys.modules[name] = module
            spec.loader.exec_module(module)
    parser: argparse.ArgumentParser = sys.modules[name].parser()
    return parser


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_understood(command):
    check(shlex.split(command))


@pytest.mark.parametrize("name", PIPFILE["scripts"])
def test_every_script_of_the_pipfile_is_understood(name):
    check(["pipenv", "run", name, *LACKING.get(name, [])])


@pytest.mark.parametrize("stage", SCRIPTS)
def test_every_stage_is_in_the_pages_and_its_example_is_understood(stage):
    assert f"| {stage} | `src/{SCRIPTS[stage]}.py` |" in COMMANDS_PAGE
    example = importlib.import_module(f"deeppatch.cli.{stage}.command").EXAMPLE
    check(["deeppatch", stage, *shlex.split(example)])


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_every_benchmark_has_a_script_and_understands_itself(path):
    if "__main__" in path.read_text():
        assert f"python {path.relative_to(ROOT)}" in PIPFILE["scripts"].values()
        assert benchmark(path).description


@pytest.mark.parametrize(
    "command",
    [
        "pipenv run no-such", "pipenv sink", "python -m no_such_module", "python -m pytest tests/no_such.py",
        "python benchmarks/assess.py --no_such 3", "python benchmarks/assess.py -m no_such", "python src/no_such.py",
        "python src/eval.py --no_such", "torchrun --nproc-per-node 2 src/correct.py -c no_such",
        "deeppatch pretrian -m resnet8", "deeppatch pretrain -m no_such", "deeppatch --print-completion fish",
        "ruff chek .", "ruff check no_such/", "mypy no_such.py", "pip install .[no_such]", "make all",
        "python docs/generate.py --chek", "python examples/no_such.py", "mkdocs bild", "codespell no_such.md",
        "pre-commit instal", "pipenv run pre-comit install",
    ],
)  # fmt: skip
def test_a_mistaken_command_is_found(command):
    with pytest.raises((AssertionError, KeyError, StopIteration, SystemExit, UserError, ModuleNotFoundError)):
        check(shlex.split(command))


def test_there_are_commands_of_every_kind_to_check():
    kinds = ("python src/", "pipenv run bench-", "pipenv sync", "deeppatch ", "torchrun ", "pip install ")
    for kind in kinds:
        assert any(command.startswith(kind) for command in ALL), kind
    assert len(ALL) >= 80


def test_loops_are_checked_with_all_their_values():
    assert commands("for m in a b; do\n  python src/eval.py --method $m\ndone\n") == {
        "python src/eval.py --method a",
        "python src/eval.py --method b",
    }


def test_the_two_lines_of_the_start_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for line in ("pip install pipenv && pipenv sync && pipenv run demo", "pipenv sync --dev && pipenv run test"):
        assert f"\n{line}\n" in README
        assert f"\n{line}\n" in ci


def test_published_commands_are_the_pipenv_scripts():
    scripts = PIPFILE["scripts"]
    assert scripts["pretrain"] == "python src/eval.py -m resnet32 -d cifar10"
    assert scripts["assess"] == "python src/select.py -m resnet32 -d cifar10 -f perfloss"
    tail = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
    assert scripts["correct"] == f"python src/correct.py {tail}"
    assert scripts["evaluate"] == f"python src/switch.py {tail}"
    assert {"demo", "test", "lint"} <= scripts.keys()
    assert SCRIPTS.keys() <= scripts.keys()


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_lock_file_installs_for_anyone():
    lock = (ROOT / "Pipfile.lock").read_text()
    assert "+cpu" not in lock
    assert re.search(r'"torch": \{[^}]*"version": "==2\.13\.0"', lock)
    assert re.search(r'"torchvision": \{[^}]*"version": "==0\.28\.0"', lock)
    assert "PYTHONPATH" not in (ROOT / ".env").read_text()


def test_the_package_declares_what_it_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert PROJECT["scripts"] == {"deeppatch": "deeppatch.cli.main:console"}
    assert {"export", "completion"} <= PROJECT["optional-dependencies"].keys()
    assert project["tool"]["setuptools"]["package-data"] == {"deeppatch": ["py.typed", "report/templates/*"]}
    required = {re.split(r"[<>=]", name)[0] for name in PROJECT["dependencies"]}
    extras = {name.split("[")[0] for extra in PROJECT["optional-dependencies"].values() for name in extra}
    assert required <= PIPFILE["packages"].keys()
    absent = {"datasets", "tensorboard", "mlflow"}  # the tests of hf:PATH and --sink stand in for them
    assert extras - absent <= PIPFILE["packages"].keys() | PIPFILE["dev-packages"].keys()
    assert not extras & required
