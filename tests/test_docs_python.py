"""The Python examples of the pages run: the blocks of a page one after the other, in one namespace."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(ROOT.glob("docs/**/*.md"))
METHODS = ("deeppatch", "decomposing", "modules", "hybrid-repair")
SLOW = ("export",)  # PyTorch takes its time to export a program
WITH_EXAMPLES = (*METHODS, "python", "your-own-model", "degradations", "labelling-your-images", "export",
                 "compare")  # fmt: skip


def program(page: str) -> str:
    """Return the Python blocks of a page as one program, with each line at the number that it has in the page."""
    lines: list[str] = []
    for block in BLOCK.finditer(page):
        start = page.count("\n", 0, block.start(1))
        lines += [""] * (start - len(lines)) + block[1].splitlines()
    return "\n".join(lines) + "\n"


def run(page: str, name: str) -> dict[str, object]:
    """Run the Python blocks of a page, and return the namespace that they leave."""
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(program(page), name, "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in SLOW))
        for page in PAGES
        if BLOCK.search(page.read_text())
    ],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    if page.stem == "export":
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # an example configures logging, for itself alone
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(page.read_text(), page.name)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_pages_that_explain_python_have_an_example(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert BLOCK.search(text)
    assert text.count("```python") == len(BLOCK.findall(text)), "every block is found"


@pytest.mark.parametrize("name", METHODS)
def test_pages_of_methods_have_the_same_headings_and_a_drawing(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "What it is", "When to use it", "Commands", "Python", "Artifacts", "How it differs from the paper", "Limits",
    ]  # fmt: skip
    (drawing,) = re.findall(r"!\[[^\]]+\]\((images/[\w-]+\.svg)\)", text)
    assert 'fill="#ffffff"' in (ROOT / "docs" / drawing).read_text()


def test_blocks_run_in_order_and_share_their_names():
    page = "# Page\n\n```python\na = 1\n```\n\ntext\n\n```python\nb = a + 1\n```\n\n```sh\nls\n```\n"
    assert program(page).splitlines()[3] == "a = 1"
    assert program(page).splitlines()[9] == "b = a + 1"
    assert run(page, "page.md")["b"] == 2


def test_a_mistake_in_an_example_is_found_at_its_line():
    with pytest.raises(ZeroDivisionError) as failure:
        run("# Page\n\n```python\n1 / 0\n```\n", "page.md")
    assert (failure.traceback[-1].path, failure.traceback[-1].lineno) == ("page.md", 3)
