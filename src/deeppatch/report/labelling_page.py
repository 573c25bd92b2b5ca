"""A self-contained HTML page on which a person labels images: it opens from disk and leaves the filled table."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd
from markupsafe import Markup

from deeppatch.data.label_file import FILE, as_text, cells_of, skip_mark
from deeppatch.report.contact_sheet import Tile, embedded
from deeppatch.report.page import environment

LARGEST = 512  # pixels, the longer side of an image on a page of up to FULL_SIZE of them
SMALLEST = 160
FULL_SIZE = 300
SCRIPTS = ("label_table.js", "labelling.js")
STYLE = "labelling.css"


@dataclass(frozen=True)
class Task:
    """What a person is asked.

    Args:
        lead: A sentence on the images and how they were chosen.
        table: The table to fill in: a row for each image, with its columns `file` and `label`.
        classes: The names of the classes.
        pool: A digest of the images to choose from. With the table's files and the classes it tells one page's labels
            from another's where a browser keeps them.
        command: What to run when the table is filled in.
    """

    lead: str
    table: pd.DataFrame
    classes: Sequence[str]
    pool: str
    command: str

    @property
    def digest(self) -> str:
        """The name under which a browser keeps the labels."""
        content = json.dumps([self.pool, list(self.table[FILE]), list(self.classes)])
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def labelling_page(task: Task, tiles: Iterable[Tile], guesses: Sequence[Sequence[tuple[int, float]]]) -> bytes:
    """Return an HTML page to label images on, with all that belongs to it inside.

    It offers the classes as buttons and by keys, keeps what was done in the browser, writes the table as annotate has
    written it with the labels filled in, and reads such a table back. Images become smaller where there are very many,
    so that the page does not grow beyond some 30 MB.

    Args:
        task: What is asked.
        tiles: The images of the table's rows, in their order; they are read one at a time.
        guesses: For each image, the classes that the network holds likely and how likely it holds them. The page shows
            them when a person asks for them.

    >>> from PIL import Image
    >>> table = pd.DataFrame({"file": ["a.png"], "reason": ["drawn at random"], "label": [""]})
    >>> task = Task("1 of 9 images.", table, ["cat", "</script>"], "", "python src/relearn.py")
    >>> page = labelling_page(task, [Tile(Image.new("RGB", (8, 8)), "a.png", ["drawn at random"])], [[(0, 0.9)]])
    >>> page.count(b"data:image/png"), b'["cat", "</script>"]' in page
    (1, False)
    """
    side = side_of(len(task.table))
    sources, facts = [], []
    for tile in tiles:
        sources.append(Markup(embedded(tile.image, side)))  # noqa: S704 - base64
        facts.append({"size": list(tile.image.size), "notes": list(tile.notes)})
    script, style = "\n".join(map(_source, SCRIPTS)), _source(STYLE)
    content: dict[str, Any] = {
        "digest": task.digest,
        "columns": list(task.table.columns),
        "cells": cells_of(task.table),
        "names": list(task.table[FILE]),
        "facts": facts,
        "classes": list(task.classes),
        "written": [as_text(name) for name in task.classes],
        "skipped": skip_mark(task.classes),
        "guesses": [
            [[number, round(100 * share)] for number, share in sorted(each, key=lambda guess: -guess[1])]
            for each in guesses
        ],
        "command": task.command,
    }
    return (
        environment()
        .get_template("labelling.html")
        .render(
            lead=task.lead,
            content=content,
            sources=sources,
            script=Markup(script),  # noqa: S704 - the package's own
            style=Markup(style),  # noqa: S704 - the package's own
            script_hash=_hash(script),
            style_hash=_hash(style),
        )
        .encode(errors="backslashreplace")
    )


def side_of(count: int) -> int:
    """Return the longer side in pixels of each of `count` images: fewer pixels where there are many images.

    >>> side_of(350), side_of(2_000)
    (474, 198)
    """
    return max(SMALLEST, min(LARGEST, round(LARGEST * (FULL_SIZE / max(1, count)) ** 0.5)))


def _source(name: str) -> str:
    """Return a file of the templates as it is."""
    return resources.files("deeppatch.report").joinpath("templates", name).read_text("utf-8")


def _hash(text: str) -> str:
    """Return the name of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
