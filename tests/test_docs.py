"""Pages: every link, anchor and image is there, generated pages are fresh, and the site links what the pages link."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import deeppatch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("benchmarks/*.md")), *sorted(DOCS.glob("**/*.md"))]
FENCE = re.compile(r"^ *```.*?^ *```[^\n]*$", re.MULTILINE | re.DOTALL)


def script(name: str) -> ModuleType:
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, generate, doctests = script("hooks"), script("generate"), script("doctests")


def slugs(page: str) -> set[str]:
    """Return the anchors of a page: of headings as forges make them, explicit ones, and those of API directives."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", page), re.MULTILINE):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each) is not None for each in found)
        found.append(f"{slug}-{repeated}" if repeated else slug)
    return {*found, *re.findall(r'\b(?:id|name)="([^"]+)"', page), *re.findall(r"^::: (\S+)$", page, re.MULTILINE)}


def broken(page: Path) -> list[str]:
    """Return the links of a page whose file, or whose anchor in it, does not exist."""
    found = []
    for link in hooks.links(page.read_text()):
        path, anchor = link["path"], (link["anchor"] or "").removeprefix("#")
        target = (page.parent / path).resolve() if path else page
        if path.startswith("/") or not target.is_relative_to(ROOT) or not target.exists():
            found.append(path)
        elif anchor and (target.suffix != ".md" or anchor not in slugs(target.read_text())):
            found.append(f"{path}#{anchor}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_anchor_and_image_of_a_page_is_there(page):
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_shows_an_image_from_elsewhere(page):
    assert re.findall(r'!\[[^\]]*\]\((?:https?:)?//[^)]*\)|<img[^>]*src="(?:https?:)?//[^"]*"', page.read_text()) == []


def test_a_link_that_leads_nowhere_is_found(monkeypatch, tmp_path):
    (tmp_path / "a.md").write_text(
        "# A title: `x`, and more\n\n## Same\n\n## Same\n\n```\n# no heading\n[x](no.md)\n```\n"
    )
    page = tmp_path / "b.md"
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page.write_text(
        "[a](a.md#a-title-x-and-more) [b](a.md#same-1) [c](https://example.org/#x) `[d](no.md)` [e](#here)\n\n# Here\n"
    )
    assert broken(page) == []
    page.write_text('[a](a.md#no-heading) [b](no.md) ![c](no.png) [d](#there) <img src="no.svg"> [e](../) [f](/a.md)\n')
    assert broken(page) == ["a.md#no-heading", "no.md", "no.png", "#there", "no.svg", "../", "/a.md"]


@pytest.mark.parametrize("name", generate.pages())
def test_generated_pages_are_fresh(name):
    assert name not in generate.stale(), f"docs/reference/{name} is stale; run: {generate.COMMAND}"


def test_an_edited_page_is_stale_until_it_is_written_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    assert (generate.main([]), generate.main(["--check"])) == (0, 0)
    capsys.readouterr()
    page = tmp_path / "artifacts.md"
    page.write_text(page.read_text().replace("history.csv", "histories.csv"))
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/reference/artifacts.md is stale; run: python docs/generate.py\n"
    assert generate.main([]) == 0
    assert capsys.readouterr().out == "docs/reference/artifacts.md written\n"
    assert "histories.csv" not in page.read_text()


def test_generated_pages_depend_neither_on_the_terminal_nor_on_torch():
    code = "import generate, sys; generate.main(['--check']); sys.exit('torch' in sys.modules)"
    environment = {"COLUMNS": "40", "PYTHONPATH": str(DOCS), "PATH": "", "LANG": "C"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    stale = {f"docs/reference/{name}" for name in generate.stale()}
    assert (done.returncode, {line.split()[0] for line in done.stderr.splitlines()}) == (0, stale)


def test_the_default_of_an_option_is_taken_from_its_help_unless_there_are_several():
    parser = generate.argparse.ArgumentParser()
    one = parser.add_argument("--one", help="how many (default: all)")
    two = parser.add_argument("--two", help="of this (default: 1), of that (default: 2)")
    assert generate.meaning(one) == ("how many", "all")
    assert generate.meaning(two) == ("of this (default: 1), of that (default: 2)", "see there")


def test_the_page_of_files_names_every_source_file():
    page = generate.files()
    for path in ROOT.glob("src/**/*.py"):
        if path.name != "__init__.py":
            section = page.split(f"\n## {path.parent.relative_to(ROOT).as_posix()}\n")[1].split("\n## ")[0]
            assert re.search(rf"^\| `{path.name}` \| \w.* \|$", section, re.MULTILINE), path
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()} - {".gitignore", ".ci"}
    assert top <= generate.TOP.keys()
    assert [name for name in generate.TOP if not (ROOT / name).exists()] == []


def test_the_page_of_the_api_has_every_public_name_once():
    page = (DOCS / "reference" / "api.md").read_text()
    assert sorted(re.findall(r"^::: deeppatch\.(\w+)$", page, re.MULTILINE)) == sorted(deeppatch.__all__)


def test_the_site_has_every_page_and_takes_nothing_from_elsewhere():
    text = (ROOT / "mkdocs.yml").read_text()
    found = yaml.safe_load(re.sub(r"!!\S+", "", text))
    named = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md")} <= named
    assert found["theme"]["font"] is False
    assert "http" not in text


def test_examples_of_docstrings_get_the_heading_that_the_site_knows():
    plain = "Do it.\n\n>>> 1 + 1\n2\n\nMore."
    assert doctests.with_examples(plain) == "Do it.\n\nExamples:\n    >>> 1 + 1\n    2\n\nMore."
    headed = "Do it.\n\nExample:\n    >>> 1 + 1\n    2"
    assert doctests.with_examples(headed) == "Do it.\n\nExamples:\n    >>> 1 + 1\n    2"


CONFIG = "site_name: s\ntheme: mkdocs\nuse_directory_urls: false\nhooks: [{hooks}]\nvalidation: {{anchors: warn}}\n"
REPOSITORY = {
    "README.md": '# Read me\n\n[page](docs/a/page.md#a-page) ![dot](docs/dot.svg) <img src="docs/dot.svg">\n',
    "RESULTS.md": "# Results\n\n[table](results/table.csv), [read me](README.md#read-me) and [page](docs/a/page.md)\n",
    "results/table.csv": "a,b\n",
    "docs/dot.svg": "<svg/>",
    "docs/index.md": "# Start\n\n[R](../RESULTS.md#results) [all](../results/) <a href='../RESULTS.md'>r</a>\n",
    "docs/a/page.md": "# A page\n\n[R](../../RESULTS.md) `[x](../../RESULTS.md)` [top](#a-page) [e](https://e.org)\n",
    "docs/reference/files.md": "# Files\n",
}


def test_the_site_brings_in_what_lies_outside_of_docs_and_links_it(tmp_path):
    for name, text in {**REPOSITORY, "mkdocs.yml": CONFIG.format(hooks=DOCS / "hooks.py")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    linked = {
        page: re.findall(r"<(?:a|img)[^>]* (?:href|src)=[\"']([^\"']*)[\"']", body)
        for page in ("index", "readme", "RESULTS", "a/page")
        for body in [(tmp_path / "site" / f"{page}.html").read_text().split('role="main"')[1].split("<footer")[0]]
    }
    assert linked["index"] == ["RESULTS.html#results", "reference/files.html", "RESULTS.html"]
    assert linked["readme"] == ["a/page.html#a-page", "dot.svg", "dot.svg"]
    assert linked["RESULTS"] == ["results/table.csv", "readme.html#read-me", "a/page.html"]
    assert linked["a/page"] == ["../RESULTS.html", "#a-page", "https://e.org"]
    assert (tmp_path / "site" / "results" / "table.csv").read_text() == "a,b\n"
