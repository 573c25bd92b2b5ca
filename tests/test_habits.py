"""What the repository promises outside its code: hooks, workflow, templates, the citation, one version everywhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import deeppatch as dp
from deeppatch.cli.options import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
PIPFILE = tomllib.loads((ROOT / "Pipfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted(path for path in (ROOT / ".github").rglob("*") if path.suffix == ".yml")
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)


def load(path: str | Path) -> Any:
    """Read a YAML file of the repository."""
    return yaml.safe_load((ROOT / path).read_text())


WORKFLOW = load(".github/workflows/ci.yml")
JOBS = WORKFLOW["jobs"]
RUNS = [(job, step["run"]) for job, each in JOBS.items() for step in each["steps"] if "run" in step]
HOOKS = [hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
CITATION = load("CITATION.cff")


def known(words: list[str]) -> bool:
    """Tell whether a command of the workflow is one of the Pipfile's, of this package, or an installation."""
    match words:
        case ["pip", "install", "pipenv" | "."] | ["pipenv", "sync", "--dev"] | ["python", "-c", _]:
            return True
        case ["pipenv", "run", "pre-commit", "run", *rest]:
            return "pre-commit" in PIPFILE["dev-packages"] and rest[0] in {hook["id"] for hook in HOOKS}
        case ["pipenv", "run", script, *_]:
            return script in PIPFILE["scripts"]
        case ["deeppatch", word, *_]:
            return word in {"--version", "--help", *SCRIPTS}
    return False


@pytest.mark.parametrize(("job", "command"), RUNS)
def test_the_workflow_runs_what_the_repository_has(job, command):
    assert known(shlex.split(command)), f"{job}: {command}"


@pytest.mark.parametrize("command", ["pipenv run lnit", "pipenv run pre-commit run no-such", "pip install x", "make"])
def test_another_command_is_found(command):
    assert not known(shlex.split(command))


def test_the_workflow_has_the_jobs_that_contributing_names():
    assert JOBS.keys() == {"lint", "tests", "minimal", "docs", "study", "slow"}
    commands = {job: [command for name, command in RUNS if name == job] for job in JOBS}
    assert {f"pipenv run {name}" for name in ("lint", "format", "types", "spelling")} <= set(commands["lint"])
    assert "pipenv run site" in commands["docs"]
    assert "pipenv run test -m study" in commands["study"]
    assert "pipenv run test" in commands["slow"]
    assert not any("pipenv" in command for command in commands["minimal"]), "pip alone, without extras"
    triggers = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a truth value
    assert triggers.keys() >= {"push", "pull_request", "schedule"}
    assert len(triggers["schedule"][0]["cron"].split()) == 5
    assert "github.event_name == 'schedule'" in JOBS["slow"]["if"]


def test_only_runs_of_pull_requests_are_cancelled_by_newer_ones():
    assert WORKFLOW["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


def test_the_fast_tests_run_on_the_oldest_python_and_a_newer_one():
    versions = [tuple(map(int, each.split("."))) for each in JOBS["tests"]["strategy"]["matrix"]["python"]]
    assert PROJECT["requires-python"] == ">={}.{}".format(*versions[0])
    assert versions[0] < versions[-1]


def test_actions_are_pinned_by_their_major_version():
    used = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert len(used) >= 2 * len(JOBS)
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in used)
    assert all("timeout-minutes" in job and len(job["steps"]) > 2 for job in JOBS.values())


def test_every_public_name_is_reached_by_the_workflow_s_command(capsys):
    (command,) = (command for job, command in RUNS if job == "minimal" and command.startswith("python -c"))
    exec(shlex.split(command)[2], {})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == len(dp.__all__)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_is_a_development_package_or_a_file_of_the_repository(hook):
    program, *rest = shlex.split(hook["entry"])
    assert hook["language"] == "system"
    assert program in PIPFILE["dev-packages"] or (program == "python" and (ROOT / rest[0]).is_file())


def test_hooks_are_local_and_those_of_the_issue():
    assert {repository["repo"] for repository in load(".pre-commit-config.yaml")["repos"]} == {"local"}
    assert {hook["id"] for hook in HOOKS} == {"ruff-check", "ruff-format", "mypy", "codespell", "large-files"}


@pytest.mark.parametrize(("size", "status"), [(500_000, 0), (500_001, 1)])
def test_large_files_are_refused_and_named(tmp_path, size, status):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(size))
    script = [sys.executable, str(ROOT / ".github" / "large_files.py"), str(file)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr == ("" if status == 0 else f"{file} has 500,001 bytes, git keeps 500,000 at most\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_for_the_forge_parses(path):
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("name", ["bug.yml", "question-or-idea.yml"])
def test_an_issue_form_has_what_the_forge_asks_for(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}")
    assert form.keys() >= {"name", "description", "body"}
    assert len({field["id"] for field in form["body"]}) == len(form["body"]), "one id for each field"
    assert all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_templates_ask_for_the_command_and_name_files_that_exist():
    template = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
    paths = re.findall(r"`?((?:src/[\w/]+\.py)|[A-Z]{5,}\.md)", template)
    assert len(paths) == 2
    assert all((ROOT / path).is_file() for path in paths)
    bug = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert all(word in bug for word in ("run.json", "Command line", "exit status"))


def test_the_citation_has_the_keys_of_its_format():
    assert CITATION.keys() >= {"cff-version", "message", "title", "authors", "version", "date-released", "license"}
    assert CITATION["cff-version"] == "1.2.0"
    (author,) = CITATION["authors"]
    assert f"(c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text()
    assert len(CITATION["references"]) == 6
    for paper in CITATION["references"]:
        assert paper.keys() >= {"type", "title", "authors", "year"}
        assert all(each.keys() == {"family-names", "given-names"} for each in paper["authors"])


def test_papers_have_the_identifiers_of_the_pages():
    found = {paper["doi"] for paper in CITATION["references"] if "doi" in paper}
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
    assert len(found) == 4
    assert [doi for doi in found if doi not in pages] == []


def test_there_is_one_version_with_one_date():
    version, date = HEADING.findall((ROOT / "CHANGELOG.md").read_text())[0]
    assert dp.__version__ == PROJECT["version"] == CITATION["version"] == version
    assert CITATION["date-released"] == date


def test_the_changelog_has_the_headings_of_its_format():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.index("## [Unreleased]") < text.index(f"## [{dp.__version__}]")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(headings) == 1 + len(HEADING.findall(text))
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
