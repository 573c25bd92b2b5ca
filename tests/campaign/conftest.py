"""The campaign: what it counts, the seed that it prints, and the files in which it leaves both."""

from __future__ import annotations

import csv
import datetime
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deeppatch import runtime
from deeppatch.stage import git_revision

sys.path.insert(0, str(Path(__file__).parent))
import forked  # noqa: E402
from workshop import Workshop  # noqa: E402

SEED = int(os.environ.get("CAMPAIGN_SEED", "20261126"))
OUTPUT = Path(os.environ.get("CAMPAIGN_OUTPUT", Path(__file__).resolve().parents[2] / "output" / "campaign"))
COLUMNS = ("part", "case", "moment", "outcome", "detail", "seconds")


@pytest.fixture(scope="session", autouse=True)
def everything_imported() -> None:
    """Import the package once, for all processes that are forked."""
    forked.import_everything()


@pytest.fixture(scope="session")
def workshop(everything_imported: None, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Every stage, undisturbed."""
    done = Workshop(tmp_path_factory.mktemp("workshop"))
    done.run_all()
    return done


@pytest.fixture(scope="session")
def other_workshop(everything_imported: None, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Every stage, undisturbed, on networks with other weights."""
    done = Workshop(tmp_path_factory.mktemp("other"), other=True)
    done.run_all()
    return done


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """The random numbers of a case: by the seed and its name."""
    return random.Random(f"{SEED} {request.node.name}")  # noqa: S311


@pytest.fixture
def count(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """`count(part, case, moment, outcome, detail="", seconds=0)` notes a case, and fails where it has failed."""

    def counted(part: str, case: str, moment: str, outcome: str, detail: str = "", seconds: float = 0.0) -> None:
        row = (part, case, moment, outcome, detail, round(seconds, 2))
        record_property("campaign", dict(zip(COLUMNS, row, strict=True)))
        assert outcome != "failed", f"{case}, {moment}: {detail}"

    return counted


def pytest_sessionstart(session: pytest.Session) -> None:
    """Print the seed, and how many cases an earlier run with it has counted."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and session.config.option.markexpr == "campaign" and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"campaign: CAMPAIGN_SEED={SEED}, CAMPAIGN_OUTPUT={OUTPUT}")
        reporter.write_line(f"{len(read_cases(OUTPUT))} cases of an earlier run count until they are run again")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append what a case has counted to cases.csv as soon as it has ended, in the process that reports."""
    if "campaign/" in report.nodeid and "PYTEST_XDIST_WORKER" not in os.environ:
        add_cases(rows_of(report), OUTPUT)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write and print the counts."""
    if rows := read_cases(OUTPUT):
        write_summary(rows, OUTPUT)
        terminalreporter.section(f"campaign, seed {SEED}")
        for part, found in summary_of(rows).items():
            terminalreporter.write_line(f"{part}: {found}")


def rows_of(report: Any) -> list[dict[str, Any]]:
    """Return the cases that a test has counted; one that has failed before it counted any is a failed case."""
    rows = [value for name, value in report.user_properties if name == "campaign"] if report.when == "call" else []
    if report.failed and not rows:
        part = Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_").replace("_", " ")
        rows = [dict(zip(COLUMNS, (part, report.nodeid, report.when, "failed", "", 0.0), strict=True))]
    return [{"seed": SEED, "test": report.nodeid, **row} for row in rows]


def add_cases(rows: list[dict[str, Any]], folder: Path) -> None:
    """Append cases to cases.csv."""
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cases.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, ("seed", "test", *COLUMNS))
        if new:
            table.writeheader()
        table.writerows(rows)


def read_cases(folder: Path) -> list[dict[str, Any]]:
    """Return the cases of this seed, of each test those of its latest run."""
    path = folder / "cases.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["seed"] == str(SEED)]
    latest = {(row["test"], row["case"]): row for row in found}
    return list(latest.values())


def summary_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return for each part of the campaign the number of cases, and of each outcome."""
    parts = sorted({row["part"] for row in rows})
    counts = {part: Counter(row["outcome"] for row in rows if row["part"] == part) for part in parts}
    return {
        part: {"cases": found.total(), **{name: found[name] for name in ("identical", "unharmed", "refused", "failed")}}
        for part, found in counts.items()
    }


def write_summary(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the counts as campaign.csv, and beside it what the tables of pages say of a table."""
    table = [{"part": part, **found} for part, found in summary_of(rows).items()]
    with (folder / "campaign.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    machine = runtime.describe(torch.device("cpu"))
    facts = {
        "question": "Is nothing lost, and is every mistake one line?",
        "commands": [f"CAMPAIGN_SEED={SEED} pipenv run campaign"],
        "revision": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": [SEED],
        "images": "30 and 60 of digits",
        "hardware": f"{machine['hardware']}, torch {machine['torch']}",
        "n": 1,
    }
    (folder / "campaign.json").write_text(json.dumps(facts, indent=2) + "\n")
