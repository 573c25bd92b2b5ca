"""Write the pages of docs/reference/ that the code itself tells: command line, artifacts and files.

python docs/generate.py [--check]

The pages depend on the sources only: not on the machine, the width of the terminal or the version of Python.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "src"))  # behind the standard library, for src/select.py

from deeppatch.cli import naming, options, parsing  # noqa: E402
from deeppatch.cli.declared import CACHES, Folder  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
COMMAND = "python docs/generate.py"
NOTE = f"<!-- Written by `{COMMAND}`; edit the sources and run it again. -->\n"
PREFIX = "python src/{script}.py"
FOLDERS = ("src", "benchmarks", "workflow", "examples", "docs")  # whose Python files the page of files names
ABOUT_OPTIONS = """\
Every stage is a script under `src/`, and a word behind `deeppatch` where the package is installed; both take the same
options. Long options may be spelled with `-` or `_` between their words. Each stage has `-h` and `--version`, too. A
mistake on the command line is one line that says what to do, with exit status 2. The
[page on commands](../commands.md) explains the options that are used most, and [artifacts](artifacts.md) what the
stages leave.
"""
ABOUT_ARTIFACTS = """\
Each run of a stage leaves a folder under `output/DATASET/MODEL/`. Below are the names of the folders: words in capitals
stand for values of options, and what is in brackets is there only where it is not the default. CORRECTION is what
follows `correct-` in the name of the folder that correct left. Behind that come the other options that the name shows,
listed for each stage below, where they are not the default (`annotate-hybrid-budget10pc`: a `%` becomes `pc`;
`relearn-hybrid-labels` for `--use labels`; `decompose-validate-k5-10-20`); the kind of degradation, the bias, the seed,
the share of val and the limit, each where it is not the default (`-biasB-seed7-limit500`); and a hash of six digits
where any other option that changes the result is not. The [page on commands](../commands.md) says how later
stages find what earlier ones left.

Every folder has `run.json`, too: the command, all options, the seed, versions, device, git revision and seconds,
digests of the data, the settings of what was read, and the SHA-256 of every file that was read or written. While a run
works, its files and checkpoints lie in a hidden folder `.FOLDER.unfinished` beside the place where they go, and
`.FOLDER.lock` names the process that writes.
"""
ABOUT_CACHES = """\
Beside the folders of the stages lie tensors that would otherwise be computed again, in files that are named by what
their content depends on. They may be deleted. `output/DATASET/contents/` keeps the digests of the data.
"""
# what else lies at the top; the page names what is there
TOP = {
    "README.md": "what the suite does, how to start, and where to read on",
    "RESULTS.md": "what was measured, a block for each question",
    "CHANGELOG.md": "what changed, by version",
    "CONTRIBUTING.md": "layout, layers, house rules and tests, for those who change the code",
    "CITATION.cff": "how to cite the suite and the papers",
    "LICENSE": "MIT",
    "Pipfile": "packages, and the scripts of `pipenv run`",
    "Pipfile.lock": "the same packages, pinned",
    "pyproject.toml": "the package, its extras, and the settings of pytest, ruff, mypy and codespell",
    "mkdocs.yml": "the site of these pages",
    ".env": "threads, memory and TORCH_HOME, which pipenv reads",
    ".ci/run": "what continuous integration runs: the commands of README, then the checks",
    ".github": "workflows, and templates for issues and pull requests",
    ".pre-commit-config.yaml": "checks before a commit",
    "docs": "the pages, and the scripts that write and link some of them",
    "src": "the commands, and the package",
    "tests": "tests, which mirror the package; tests/realdata needs real files",
    "benchmarks": "what is timed or measured over many runs, one command each",
    "workflow": "studies: a matrix of runs with Snakemake, on one machine or a cluster",
    "examples": "whole programs that use the package from Python",
    "results": "the files that tables in README.md, RESULTS.md and benchmarks/README.md are made from",
    "data": "data sets (ignored by git)",
    "output": "artifacts of the stages (ignored by git)",
}


def modules() -> dict[str, ModuleType]:
    """Return the command module of every stage, in the order of the stages."""
    return {stage: importlib.import_module(f"deeppatch.cli.{stage}.command") for stage in options.SCRIPTS}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(words: Sequence[str]) -> str:
    """Return words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


# the command line


def value_of(action: argparse.Action) -> str:
    """Return how the value of an option is written: ` N`, ` K ...`, or nothing for a switch and for choices."""
    name = action.metavar or ("" if action.choices or action.nargs == 0 else action.dest.upper())
    if isinstance(name, tuple):
        return " " + " ".join(name)
    if action.nargs in ("+", "*"):
        return f" {name} ..."
    return f" {name}" * (action.nargs if isinstance(action.nargs, int) else 1) if name else ""


def spelled(action: argparse.Action) -> str:
    """Return all spellings of an option, the last one with its value, or the name of a positional argument."""
    *others, last = action.option_strings or [str(action.metavar)]
    return code([*others, last + (value_of(action) if action.option_strings else "")])


def meaning(action: argparse.Action) -> tuple[str, str]:
    """Return the help of an option without its default, and the default; the whole help where it has several."""
    shown = {name: value for name, value in vars(action).items() if value is not argparse.SUPPRESS}
    text = str(action.help) % shown
    if text.count("default: ") > 1:
        return text, "see there"
    found = re.search(r" ?\((?:([^()]*); )?default: ([^()]*)\)", text)
    if found:
        text = text[: found.start()] + (f" ({found[1]})" if found[1] else "") + text[found.end() :]
        return text, found[2]
    value = action.default
    usual = [] if value is None or value is False or value is argparse.SUPPRESS else value
    return text, " ".join(map(str, usual)) if isinstance(usual, (list, tuple)) else str(usual)


def row_of(action: argparse.Action) -> list[str]:
    """Return the row of an option in its table."""
    text, usual = (re.sub(r"(?<![\w`-])(--?[a-z]\w*)", r"`\1`", part) for part in meaning(action))
    choices = [str(choice) for choice in action.choices or []]
    told = action.metavar and all(choice in text for choice in choices)
    return [spelled(action), text + (f"; one of {code(choices)}" if choices and not told else ""), usual]


def stage_options(stage: str, module: ModuleType) -> str:
    """Return the part of the page that is about one stage."""
    parser = parsing.parser_of(module, PREFIX)
    lead, *rest = module.DESCRIPTION.split("\n\n")
    actions = [action for action in parser._actions if not action.option_strings]
    names = ["[options]", *(str(action.metavar) for action in actions)]
    command, script = (options.call(prefix, stage) for prefix in ("deeppatch {stage}", PREFIX))
    parts = [f"## {stage}\n", f"{lead}\n"]
    parts += [f"```text\n{part}\n```\n" if part.startswith(" ") else f"{part}\n" for part in rest]
    parts.append(f"```text\n{script} {' '.join(names)}\n{command} {' '.join(names)}\n```\n")
    parts.append(f"Example:\n\n```sh\n{script} {module.EXAMPLE}\n```\n")
    for index, group in enumerate(parser._action_groups):
        title = {0: "arguments", 1: "options"}.get(index, group.title)  # the first two are named by argparse
        shown = [action for action in group._group_actions if action.dest not in ("help", "version")]
        rows = [row_of(action) for action in shown if action.help is not argparse.SUPPRESS]
        if rows:
            parts += [f"**{str(title).capitalize()}**\n", table(["option", "meaning", "default"], rows)]
    return "\n".join(parts)


def command_line() -> str:
    """Return the page of all options."""
    stages = modules()
    links = ", ".join(f"[{stage}](#{stage})" for stage in stages)
    parts = (stage_options(stage, module) for stage, module in stages.items())
    return "\n".join(["# Command line\n", NOTE, ABOUT_OPTIONS, f"Stages: {links}.\n", *parts])


# the artifacts


def long_names(module: ModuleType) -> dict[str, str]:
    """Return how each option of a stage is spelled in full, by its name in the code."""
    actions = parsing.parser_of(module, PREFIX)._actions
    return {
        action.dest: max(action.option_strings or [str(action.metavar)], key=lambda name: name.startswith("--"))
        for action in actions
    }


def named_by(stage: str, names: dict[str, str]) -> str:
    """Return the sentence that says which options a folder's name depends on."""
    identity = naming.IDENTITIES[stage]
    shown, hashed = ([names[name] for name in part] for part in (identity.named, identity.hashed))
    sentences = [f"The name shows {code(shown)}." if shown else ""]
    sentences += [f"The hash covers what is not the default of {code(hashed)}."] if hashed else []
    return " ".join(filter(None, sentences)) + "\n"


def stage_artifacts(stage: str, module: ModuleType) -> str:
    """Return the part of the page that is about one stage."""
    parts = [f"## {stage}\n", named_by(stage, long_names(module))]
    for folder in module.ARTIFACTS:
        rows = [[f"`{name}`", text] for name, text in files_of(folder)]
        parts += [f"`{folder.pattern}`: {folder.about}\n", table(["file", "what it is"], rows)]
    return "\n".join(parts)


def files_of(folder: Folder) -> Iterator[tuple[str, str]]:
    """Yield the files of a folder, those that are always there first."""
    yield from folder.files.items()
    yield from folder.sometimes.items()


def artifacts() -> str:
    """Return the page of all folders and files that stages leave."""
    caches = table(["folder", "what it keeps"], [[f"`{name}/`", text] for name, text in CACHES.items()])
    stages = {stage: module for stage, module in modules().items() if hasattr(module, "ARTIFACTS")}
    parts = (stage_artifacts(stage, module) for stage, module in stages.items())
    return "\n".join(["# Artifacts\n", NOTE, ABOUT_ARTIFACTS, *parts, "## Caches\n", ABOUT_CACHES, caches])


# the files


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?:\s|$)", paragraph, maxsplit=1)[0]


def folders_of(root: Path) -> Iterator[Path]:
    """Yield a folder and those in it that hold Python files, sorted."""
    found = sorted(path for path in root.rglob("*.py") if not any(part.endswith("egg-info") for part in path.parts))
    yield from sorted({path.parent for path in found})


def files() -> str:
    """Return the page of all files of the repository that hold code, and of what lies at the top."""
    top = [[f"`{name}`", text] for name, text in TOP.items() if (ROOT / name).exists()]
    parts = ["# Files\n", NOTE, "What lies where, in the words of the files' own docstrings.\n"]
    parts += ["## At the top\n", table(["name", "what it is"], top)]
    for folder in (folder for name in FOLDERS for folder in folders_of(ROOT / name)):
        package = folder / "__init__.py"
        rows = [[f"`{path.name}`", first_sentence(path)] for path in sorted(folder.glob("*.py")) if path != package]
        parts.append(f"## {folder.relative_to(ROOT).as_posix()}\n")
        parts += [f"{first_sentence(package)}.\n"] if package.exists() else []
        parts += [table(["file", "what it holds"], rows)] if rows else []
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its name."""
    return {"command-line.md": command_line(), "artifacts.md": artifacts(), "files.md": files()}


def stale() -> dict[str, str]:
    """Return what the generated pages should be, for those that are not what the sources say."""
    present = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md")}
    return {name: text for name, text in pages().items() if present.get(name) != text}


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    found = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    found.add_argument(
        "--check", action="store_true", help="write nothing; name the stale pages and exit with status 1"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit status."""
    given = parser().parse_args(arguments)
    changed = stale()
    for name, text in changed.items():
        if given.check:
            print(f"docs/reference/{name} is stale; run: {COMMAND}", file=sys.stderr)
        else:
            REFERENCE.mkdir(parents=True, exist_ok=True)
            (REFERENCE / name).write_text(text, encoding="utf-8")
            print(f"docs/reference/{name} written")
    return 1 if given.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
