from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import weakref
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deeppatch.report.contact_sheet import Tile
from deeppatch.report.labelling_page import Task, labelling_page, side_of

NAMES = ["</script><b>.png", "b, 'c'.png"]
CLASSES = ("cat", "</script><i>", "__proto__", "(skipped)", "=dog")


class Scripts(HTMLParser):
    """Collects the scripts of a page by their id, its policy, and all tags."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self.policy = ""
        self.inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.tags.append(tag)
        self.inside = named.get("id") or tag if tag in ("script", "style") else ""
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def task(names=NAMES, classes=CLASSES, pool="1") -> Task:
    table = pd.DataFrame({"file": names, "reason": "alone", "uncertainty": 1 / 3, "label": ""})
    return Task("2 of <9> images.", table, classes, pool, "python src/relearn.py --labels selection.csv")


def tile(width=8, height=8) -> Tile:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Tile(Image.fromarray(pixels), "", ["alone", "uncertainty 0.33"])


def read(page: bytes) -> tuple[Scripts, dict]:
    found = Scripts(page)
    return found, json.loads(found.scripts["task"])


def test_the_page_holds_the_table_the_images_and_nothing_that_names_could_break():
    page = labelling_page(task(), [tile(), tile(300, 200)], [[(4, 0.2), (0, 0.666)], []])
    found, content = read(page)
    assert content["names"] == NAMES
    assert content["classes"] == list(CLASSES)
    assert content["written"] == [*CLASSES[:4], "'=dog"]
    assert content["skipped"] == "((skipped))"
    assert content["columns"] == ["file", "reason", "uncertainty", "label"]
    assert content["cells"] == [[name, "alone", "0.333333", ""] for name in NAMES]
    assert content["guesses"] == [[[0, 67], [4, 20]], []]
    assert content["facts"][1] == {"size": [300, 200], "notes": ["alone", "uncertainty 0.33"]}
    assert found.tags.count("script") == 4
    assert found.tags.count("b") == 1, "the page's own; none of a name"
    assert b"2 of &lt;9&gt; images." in page
    assert not re.search(rb"https?:|url\(|@import", page)
    for place, kind in enumerate(("png", "jpeg")):
        head, _, code = found.scripts[f"image-{place}"].partition(";base64,")
        assert head == f"data:image/{kind}"
        assert Image.open(io.BytesIO(base64.b64decode(code, validate=True))).size == tuple(
            content["facts"][place]["size"]
        )


def test_the_policy_allows_the_page_s_own_script_and_style_and_nothing_else():
    found, _ = read(labelling_page(task(), [tile(), tile()], [[], []]))
    for name, kind in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(found.scripts[name].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in found.policy
    assert found.policy.startswith("default-src 'none'; img-src data:;")


def test_labels_of_other_files_classes_or_pools_are_kept_apart():
    others = [task(), task(NAMES[::-1]), task(classes=CLASSES[1:]), task(pool="2")]
    assert len({each.digest for each in others}) == 4
    assert task().digest == task().digest


def test_images_are_read_one_at_a_time_and_many_are_smaller():
    images = []

    def tiles():
        for _ in range(3):
            assert sum(each() is not None for each in images) <= 1
            made = tile(600, 300)
            images.append(weakref.ref(made.image))
            yield made
            del made

    names = [f"{number}.png" for number in range(3)]
    found, content = read(labelling_page(task(names), tiles(), [[]] * 3))
    assert len(content["facts"]) == 3
    code = found.scripts["image-2"].partition(";base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (512, 256)
    assert [side_of(count) for count in (0, 300, 1_200, 100_000)] == [512, 512, 256, 160]


@pytest.mark.parametrize("classes", [("cat",), ()])
def test_a_page_without_images_is_whole(classes):
    found, content = read(labelling_page(task([], classes), [], []))
    assert content["cells"] == content["names"] == []
    assert found.tags.count("script") == 2
