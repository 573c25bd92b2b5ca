"""Fill the tables of the pages from the files under results/.

python benchmarks/tables.py [--check]

A page marks a table by two comments, and what stands between them is replaced:

    <!-- table: results/legacy/routers.csv; columns: router | AUROC; rename: AUROC = area; decimals: 2; commands -->
    <!-- end -->

The options behind the file are optional: `columns` chooses and orders, `rows` chooses by the first column, `rename`
gives other headings, `decimals` rounds numbers, `commands` puts the commands that made the file in front, `plain`
leaves out the line on where it is from. That line and the commands come from the JSON file of the same name beside the
CSV file. Where a table has a column `seed`, its rows are averaged over seeds: text columns name the rows, numbers
become mean ± standard deviation. A mistake in a page or a file is one line that names the file.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "RESULTS.md",
    "benchmarks/README.md",
    "docs/deeppatch.md",
    "docs/reliability.md",
    "docs/scale.md",
)
KEYS = ("question", "commands", "revision", "date", "seeds", "images", "hardware", "n")  # of every JSON file
BLOCK = re.compile(r"(<!-- table: (?P<options>[^\n]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
LISTS, TEXTS = ("commands", "seeds"), ("revision", "date")  # what these hold, where it is known
SEED, DECIMALS = "seed", 2


@contextmanager
def named(file: str | Path) -> Iterator[None]:
    """Put the name of a file in front of a message that ends the script."""
    try:
        yield
    except (SystemExit, OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SystemExit(f"{file}: {reason}") from None


@dataclass
class Table:
    """A table as text: its headings, and rows as long as these."""

    headings: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column; raise SystemExit where there is none of this name."""
        if name not in self.headings:
            raise SystemExit(f"no column {name!r}; there are {', '.join(self.headings)}")
        return [row[self.headings.index(name)] for row in self.rows]


@dataclass
class Marker:
    """What a page asks for: a file, and how to show it."""

    file: str
    columns: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    decimals: int | None = None
    commands: bool = False
    plain: bool = False


def marker(text: str) -> Marker:
    """Read the options of a marker: a file, and parts divided by semicolons."""
    file, *parts = [part.strip() for part in text.split(";")]
    found = Marker(file)
    for part in parts:
        name, _, value = (each.strip() for each in part.partition(":"))
        if name in ("columns", "rows"):
            setattr(found, name, [each.strip() for each in value.split("|")])
        elif name == "rename":
            found.rename = {old.strip(): new.strip() for old, _, new in (x.partition("=") for x in value.split("|"))}
        elif name == "decimals":
            if not re.fullmatch(r"\d", value):
                raise SystemExit(f"{file}: decimals: {value}: give a number from 0 to 9")
            found.decimals = int(value)
        elif part in ("commands", "plain"):
            setattr(found, part, True)
        else:
            known = "columns, rows, rename, decimals, commands and plain"
            raise SystemExit(f"{file}: no option {part!r}; there are {known}")
    return found


def read(path: Path) -> Table:
    """Read a CSV file as text, so that no figure is rounded."""
    if not path.is_file():
        raise SystemExit("no such file")
    with path.open(newline="", encoding="utf-8") as file:
        headings, *rows = list(csv.reader(file)) or [[]]
    if not headings or not rows:
        raise SystemExit("a table needs a line of headings and at least one row")
    for number, row in enumerate(rows, 2):
        if len(row) != len(headings):
            raise SystemExit(f"row {number} has {len(row)} cells, the headings are {len(headings)}")
    return Table(headings, rows)


def facts_of(path: Path) -> dict[str, Any]:
    """Read the JSON file beside a table, and check that it says where the table is from."""
    if not path.is_file():
        raise SystemExit("no such file; every table has one that says where it is from")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SystemExit(f"no JSON: {error}") from None
    if not isinstance(found, dict) or (absent := [key for key in KEYS if key not in found]):
        raise SystemExit(f"no {', '.join(absent if isinstance(found, dict) else KEYS)}")
    for kind, word, keys in ((list, "a list", LISTS), (str, "text", TEXTS)):
        if wrong := [key for key in keys if not isinstance(found[key], kind | None)]:
            raise SystemExit(f"{wrong[0]} is {found[wrong[0]]!r}; it needs {word} or null")
    return found


def numeric(cells: list[str]) -> bool:
    """Return whether all cells that are not empty are plain numbers, and at least one is not empty."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(NUMBER.fullmatch(cell) for cell in filled)


def rounded(table: Table, decimals: int) -> Table:
    """Return the table with every fraction in a column of numbers rounded."""
    fractions = [numeric(cells) and any("." in cell for cell in cells) for cells in map(table.column, table.headings)]
    rows = [
        [f"{float(cell):.{decimals}f}" if cell and fraction else cell
         for cell, fraction in zip(row, fractions, strict=True)]
        for row in table.rows
    ]  # fmt: skip
    return Table(table.headings, rows)


def over_seeds(table: Table, decimals: int) -> tuple[Table, str]:
    """Return mean ± standard deviation of rows that differ in their seed and numbers only, and how many seeds."""
    headings = [name for name in table.headings if name != SEED]
    numbers = [name for name in headings if numeric(table.column(name))]
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in table.rows:
        cells = dict(zip(table.headings, row, strict=True))
        key = tuple(cells[name] for name in headings if name not in numbers)
        group = groups.setdefault(key, {name: [] for name in [SEED, *headings]})
        for name, cell in cells.items():
            group[name].append(cell)
    rows = [
        [spread(group[name], decimals) if name in numbers else group[name][0] for name in headings]
        for group in groups.values()
    ]
    for group in groups.values():
        if len(set(group[SEED])) < len(group[SEED]):
            raise SystemExit(f"several rows of one seed have the same names: {group}")
    counts = sorted({len(group[SEED]) for group in groups.values()})
    number = " to ".join(map(str, counts[:1] + counts[1:][-1:]))
    return Table(headings, rows), f"mean ± standard deviation, n = {number} seeds" if counts[-1] > 1 else "n = 1 seed"


def spread(cells: list[str], decimals: int) -> str:
    """Return the mean of numbers, and their standard deviation where there are several."""
    values = [float(cell) for cell in cells if cell]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def origin(facts: dict[str, Any], seeds: str) -> str:
    """Return one line on where a table is from; what is not known is left out, but for commands, revision and n."""
    revision = facts["revision"] or "revision not recorded"
    revision = revision if " " in revision else f"revision {revision[:7]}{'-dirty' * revision.endswith('-dirty')}"
    values = [str(seed) for seed in facts["seeds"] or []]
    number = f"n = {facts['n']}" if facts["n"] is not None else "n not recorded"
    if len(values) == 1 and facts["n"] != 1:
        number = f"{facts['n']} runs of one seed"
    parts = [
        seeds or number,
        f"seed{'s' * (len(values) > 1)} {', '.join(values)}" if values else "",
        f"{revision} ({facts['date']})" if facts["date"] else revision,
    ]
    sentences = [
        "; ".join(part for part in parts if part),
        f"Images: {facts['images']}" if facts["images"] else "",
        f"Hardware: {facts['hardware']}" if facts["hardware"] else "",
        "" if facts["commands"] else "Command not recorded",
        f"Note: {facts['note']}" if facts.get("note") else "",
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    rows = [table.headings, ["---"] * len(table.headings), *table.rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def block(text: str, root: Path) -> str:
    """Return what stands behind a marker with these options: commands, the line on the origin, and the table."""
    wanted = marker(text)
    path, sidecar = root / wanted.file, (root / wanted.file).with_suffix(".json")
    with named(wanted.file):
        table, seeds = read(path), ""
        if SEED in table.headings:
            table, seeds = over_seeds(table, DECIMALS if wanted.decimals is None else wanted.decimals)
        elif wanted.decimals is not None:
            table = rounded(table, wanted.decimals)
        headings = wanted.columns or table.headings
        rows = [list(row) for row in zip(*map(table.column, headings), strict=True)]
        if absent := set(wanted.rows) - {row[0] for row in rows}:
            raise SystemExit(f"no row {', '.join(sorted(absent))}")
        if absent := wanted.rename.keys() - set(headings):
            raise SystemExit(f"rename: no column {', '.join(sorted(absent))} is shown; there are {', '.join(headings)}")
        if blank := [old for old, new in wanted.rename.items() if not new]:
            raise SystemExit(f"rename: {blank[0]}: write OLD = NEW")
    rows = [row for row in rows if not wanted.rows or row[0] in wanted.rows]
    with named(Path(wanted.file).with_suffix(".json").as_posix()):
        facts = facts_of(sidecar)
    parts = []
    if wanted.commands and facts["commands"]:
        parts.append("```sh\n" + "".join(f"{line}\n" for line in facts["commands"]) + "```\n")
    if not wanted.plain:
        parts.append(origin(facts, seeds) + "\n")
    parts.append(markdown(Table([wanted.rename.get(name, name) for name in headings], rows)))
    return "\n" + "\n".join(parts) + "\n"


def filled(page: str, root: Path) -> str:
    """Return a page with all its tables filled; raise SystemExit where a marker is not closed."""
    if not page.count("<!-- table: ") == page.count("<!-- end -->") == len(BLOCK.findall(page)):
        raise SystemExit("every '<!-- table: FILE -->' stands on its own line and needs one '<!-- end -->'")
    return BLOCK.sub(lambda match: match[1] + block(match["options"], root) + match[4], page)


def used(page: str) -> list[str]:
    """Return the files that a page shows."""
    return [marker(match["options"]).file for match in BLOCK.finditer(page)]


def stale(page: str, root: Path) -> list[str]:
    """Return the files whose tables in a page are not what the files hold."""
    new = filled(page, root)
    pairs = zip(BLOCK.finditer(page), BLOCK.finditer(new), strict=True)
    return [marker(old["options"]).file for old, now in pairs if old["body"] != now["body"]]


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table is stale")
    return found


def main() -> None:
    """Fill the pages, or name the tables that are stale."""
    options, failed = parser().parse_args(), False
    for name in PAGES:
        path = ROOT / name
        with named(name):
            page = path.read_text(encoding="utf-8")
            files = stale(page, ROOT)
        for file in files:
            print(f"{name}: the table of {file} {'is not what the file holds' if options.check else 'is filled'}")
        failed |= bool(files)
        if files and not options.check:
            path.write_text(filled(page, ROOT), encoding="utf-8")
    if options.check and failed:
        sys.exit("run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
