"""Tables in the pages are what the files under results/ hold, and every file says where it is from."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = tables
SPEC.loader.exec_module(tables)
sys.path.insert(0, str(ROOT / "benchmarks"))
machine = importlib.import_module("machine")
ABSOLUTE = machine.ABSOLUTE
PAGES = {name: (ROOT / name).read_text() for name in tables.PAGES}


def committed(ending: str) -> list[Path]:
    """Return the files under results/ that git knows; where there is no git, all of them."""
    listing = ["git", "-C", str(ROOT), "ls-files", "results"]
    done = subprocess.run(listing, capture_output=True, text=True, check=False)
    files = [ROOT / line for line in done.stdout.splitlines()] if done.returncode == 0 else ROOT.glob("results/**/*")
    return sorted(path for path in files if path.suffix == ending and path.exists())


@pytest.mark.parametrize("name", PAGES)
def test_tables_in_pages_are_those_of_the_files(name):
    assert tables.stale(PAGES[name], ROOT) == [], "run python benchmarks/tables.py"


def test_every_table_is_used_by_a_page():
    used = {file for page in PAGES.values() for file in tables.used(page)}
    files = {path.relative_to(ROOT).as_posix() for path in committed(".csv")}
    assert files
    assert files <= used, "files that no page shows"
    assert used <= files, "files that pages show, but that are not committed"


@pytest.mark.parametrize("path", committed(".csv"), ids=lambda path: path.stem)
def test_every_table_says_where_it_is_from(path):
    facts = json.loads(path.with_suffix(".json").read_text())
    assert set(tables.KEYS) <= facts.keys()
    assert facts["question"]
    assert isinstance(facts["commands"], list), "an empty list where the command is not recorded"
    assert facts["n"] >= 1
    assert len(facts["seeds"] or []) in (0, 1, facts["n"]), "n counts seeds, or repetitions with one of them"
    with path.open(newline="") as file:
        headings, *rows = csv.reader(file)
    assert len(set(headings)) == len(headings)
    assert rows
    assert {len(row) for row in rows} == {len(headings)}


@pytest.mark.parametrize("path", committed(".json"), ids=lambda path: path.stem)
def test_no_file_names_a_place_on_the_machine_that_made_it(path):
    assert ABSOLUTE.findall(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--weights=/home/me/resnet.th", "--weights=resnet.th"), ("/data/long/ledger.csv", "ledger.csv"),
        ("/a/output/", "output"), ("[PosixPath('/a/b.csv'), '/c']", "[PosixPath('b.csv'), 'c']"),
        ("results/a.csv", "results/a.csv"), ("../a b/c", "../a b/c"), ("https://a.org/b", "https://a.org/b"),
        ("1/5 or 2 / 5", "1/5 or 2 / 5"), ("~/data", "~/data"), ("run-*/run.json", "run-*/run.json"),
    ],
)  # fmt: skip
def test_absolute_paths_are_shortened_to_their_names(text, said):
    assert machine.portable(text) == said


def test_no_other_files_lie_beside_the_tables():
    assert {path.with_suffix(".csv") for path in committed(".json")} == set(committed(".csv"))


def test_outside_of_tables_pages_hold_no_typed_tables_of_figures():
    for name in ("RESULTS.md", "benchmarks/README.md"):
        prose = tables.BLOCK.sub("", PAGES[name])
        typed = [line for line in prose.splitlines() if line.startswith("|") and tables.re.search(r"\| *[-+]?\d", line)]
        assert typed == []


@pytest.fixture
def root(tmp_path):
    """Return a folder with a table over two seeds, one that is plain text, and one of which no command is known."""
    (tmp_path / "seeds.csv").write_text(
        "seed,network,clean,blurred\n1,before,90,30.5\n2,before,92,31.5\n1,after,91.5,60\n2,after,91.5,\n"
    )
    facts = {"question": "Q?", "commands": ["python src/demo.py"], "revision": "0123456789", "date": "2020-01-01",
             "seeds": [1, 2], "images": "3 images", "hardware": None, "n": 2}  # fmt: skip
    (tmp_path / "seeds.json").write_text(json.dumps(facts))
    (tmp_path / "text.csv").write_text('way,"a, b",c\nours,92.10 ± 0.10,1|2\n')
    (tmp_path / "text.json").write_text(json.dumps(facts | {"n": 1, "seeds": [1], "revision": None, "date": None}))
    (tmp_path / "bare.csv").write_text("way,seconds,count\nours,1.23456,3\nusual,,4\n")
    (tmp_path / "bare.json").write_text(json.dumps(facts | {"commands": [], "n": 3, "seeds": [5], "images": None}))
    return tmp_path


def page(options: str) -> str:
    """Return a page with one empty block."""
    return f"before\n<!-- table: {options} -->\n<!-- end -->\nafter\n"


def test_figures_are_shown_as_they_are_spelled(root):
    filled = tables.filled(page("text.csv"), root)
    assert filled == (
        "before\n<!-- table: text.csv -->\n\nn = 1; seed 1; revision not recorded. Images: 3 images.\n\n"
        "| way | a, b | c |\n| --- | --- | --- |\n| ours | 92.10 ± 0.10 | 1\\|2 |\n\n<!-- end -->\nafter\n"
    )
    assert tables.filled(filled, root) == filled, "filling twice changes nothing"


def test_rows_are_averaged_over_seeds(root):
    filled = tables.filled(
        page("seeds.csv; columns: network | blurred | clean; rename: clean = top-1; decimals: 1"), root
    )
    assert "| network | blurred | top-1 |\n" in filled
    assert "| before | 31.0 ± 0.7 | 91.0 ± 1.4 |\n" in filled
    assert "| after | 60.0 | 91.5 ± 0.0 |\n" in filled, "an empty cell does not count"
    assert (
        "\nmean ± standard deviation, n = 2 seeds; seeds 1, 2; revision 0123456 (2020-01-01). Images: 3 images.\n"
        in filled
    )


def test_commands_stand_in_front_where_they_are_asked_for(root):
    assert "-->\n\n```sh\npython src/demo.py\n```\n\nn = 1;" in tables.filled(page("text.csv; commands"), root)
    assert "n = 1" not in tables.filled(page("text.csv; plain"), root)


def test_fractions_are_rounded_and_whole_numbers_are_kept(root):
    filled = tables.filled(page("bare.csv; decimals: 2; plain"), root)
    assert (
        "-->\n\n| way | seconds | count |\n| --- | --- | --- |\n| ours | 1.23 | 3 |\n| usual |  | 4 |\n\n<!--" in filled
    )


@pytest.mark.parametrize("nothing", [[], None])
def test_where_no_command_is_recorded_the_table_says_so(root, nothing):
    facts = json.loads((root / "bare.json").read_text())
    (root / "bare.json").write_text(json.dumps(facts | {"commands": nothing}))
    filled = tables.filled(page("bare.csv; commands"), root)
    assert "-->\n\n3 runs of one seed; seed 5; revision 0123456 (2020-01-01). Command not recorded.\n\n|" in filled


def test_a_changed_figure_is_stale(root):
    filled = tables.filled(page("text.csv"), root)
    assert tables.stale(filled, root) == []
    assert tables.stale(filled.replace("92.10", "92.11"), root) == ["text.csv"]
    (root / "text.csv").write_text("way,c\nours,2\n")
    assert tables.stale(filled, root) == ["text.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("no.csv", "no.csv: no such file"),
        ("text.csv; columns: nothing", "text.csv: no column 'nothing'; there are way, a, b, c"),
        ("text.csv; digits: 3", "text.csv: no option 'digits: 3'"),
        ("text.csv; decimals: two", "text.csv: decimals: two: give a number from 0 to 9"),
        ("text.csv; decimals: -1", "text.csv: decimals: -1: give a number from 0 to 9"),
        ("text.csv; rows: theirs", "text.csv: no row theirs"),
        ("text.csv; rename: d = e", "text.csv: rename: no column d is shown; there are way, a, b, c"),
        ("text.csv; columns: way; rename: c = e", "text.csv: rename: no column c is shown; there are way"),
        ("text.csv; rename: c", "text.csv: rename: c: write OLD = NEW"),
    ],
)
def test_a_mistaken_marker_is_named(root, options, message):
    with pytest.raises(SystemExit, match=tables.re.escape(message)):
        tables.filled(page(options), root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.csv", b"", "text.csv: a table needs a line of headings and at least one row"),
        ("text.csv", b"way,c\n", "text.csv: a table needs a line of headings and at least one row"),
        ("text.csv", b"way,c\nours,1\nusual\n", "text.csv: row 3 has 1 cells, the headings are 2"),
        ("text.csv", b"way,c\nours,\xff\n", "text.csv: 'utf-8' codec can't decode"),
        ("text.json", None, "text.json: no such file"),
        ("text.json", b"{", "text.json: no JSON: "),
        ("text.json", b"[]", "text.json: no question, commands"),
        ("text.json", b'{"question": "Q?", "commands": []}', "text.json: no revision, date, seeds, images"),
        ("text.json", {"commands": "demo"}, "text.json: commands is 'demo'; it needs a list or null"),
        ("text.json", {"seeds": 3}, "text.json: seeds is 3; it needs a list or null"),
        ("text.json", {"revision": 3}, "text.json: revision is 3; it needs text or null"),
    ],
)
@pytest.mark.parametrize("options", ["text.csv", "text.csv; plain"])
def test_a_mistaken_file_is_named(root, name, content, message, options):
    if isinstance(content, dict):
        content = json.dumps(json.loads((root / name).read_text()) | content).encode()
    (root / name).unlink() if content is None else (root / name).write_bytes(content)
    with pytest.raises(SystemExit, match="^" + tables.re.escape(message)):
        tables.filled(page(options), root)


def test_the_script_names_page_and_file_in_one_line(root, monkeypatch):
    (root / "page.md").write_text(page("text.csv"))
    (root / "text.csv").write_text("")
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    for name, message in (("page.md", "page.md: text.csv: a table"), ("no.md", "no.md: No such file")):
        monkeypatch.setattr(tables, "PAGES", (name,))
        with pytest.raises(SystemExit, match=f"^{message}"):
            tables.main()


def test_a_marker_that_is_not_closed_is_refused(root):
    with pytest.raises(SystemExit, match="needs one"):
        tables.filled("<!-- table: text.csv -->\n", root)


def test_two_rows_of_one_seed_are_refused(root):
    (root / "seeds.csv").write_text("seed,network,clean\n1,before,90\n1,before,91\n")
    with pytest.raises(SystemExit, match="several rows of one seed"):
        tables.filled(page("seeds.csv"), root)


def test_the_check_names_what_is_stale_and_changes_nothing(root, monkeypatch, capsys):
    (root / "page.md").write_text(page("text.csv"))
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(tables, "PAGES", ("page.md",))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match="run python benchmarks/tables.py") as stopped:
        tables.main()
    assert stopped.value.code != 0
    assert "page.md: the table of text.csv is not what the file holds" in capsys.readouterr().out
    assert (root / "page.md").read_text() == page("text.csv")
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert "| ours | 92.10" in (root / "page.md").read_text()
