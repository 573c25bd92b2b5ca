"""Label tables: written for a spreadsheet, and read as a spreadsheet leaves them, with all problems told together."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from deeppatch.errors import Contradictions, UserError, closest

FILE, LABEL = "file", "label"
SKIPPED = -1  # the label of an image that a person has passed over
SAVE_AS = "save it as CSV UTF-8"
# a spreadsheet computes a cell that begins with one of the first; an apostrophe in front makes it text
_COMPUTED = ("=", "+", "-", "@", "\t", "\r", "'")
_DELIMITER_LINE = re.compile(r'"?sep=(.)"?\s*\Z', re.IGNORECASE)


def table_to_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as CSV that spreadsheets open as it is: UTF-8 with its mark, and no text that they would compute.

    >>> table_to_bytes(pd.DataFrame({"file": ["=1+1.png"], "label": [""]}))[3:]
    b"file,label\\n'=1+1.png,\\n"
    """
    rows = [list(table.columns), *cells_of(table)]
    return codecs.BOM_UTF8 + "".join(",".join(map(_quoted, row)) + "\n" for row in rows).encode()


def cells_of(table: pd.DataFrame) -> list[list[str]]:
    """Return the cells of a table as they are written, before they are quoted: its rows, without the heading."""
    return [
        [f"{cell:.6g}" if isinstance(cell, float) else as_text(str(cell)) for cell in row]
        for row in table.itertuples(index=False)
    ]


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


def as_text(cell: str) -> str:
    """Return a cell with an apostrophe in front where a spreadsheet would compute it."""
    return f"'{cell}" if cell.startswith(_COMPUTED) else cell


def skip_mark(classes: Iterable[str]) -> str:
    """Return what stands in place of a label where a person has passed an image over: no class is called so.

    >>> skip_mark(["cat", "dog"]), skip_mark(["(skipped)"])
    ('(skipped)', '((skipped))')
    """
    mark, taken = "(skipped)", {_composed(name).strip().casefold() for name in classes}
    while mark in taken:
        mark = f"({mark})"
    return mark


def read_labels(content: bytes, origin: Path, files: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return the labels int64 (B,) of the chosen `files` (B), in their order, by the names of their classes.

    SKIPPED stands for an image that a person has passed over: its label is `skip_mark(classes)`. Raises Contradictions
    that tell all missing, unknown and surplus labels at once; the file is never changed.
    """
    own_names, known = _spellings(files), _spellings(classes)
    found = dict.fromkeys((_meant(name, own_names), _meant(label, known)) for name, label in _rows(content, origin))
    labelled = {name for name, label in found if label}
    rows = [(name, label) for name, label in found if label or name not in labelled]  # each once
    given, mark = dict(rows), skip_mark(classes)
    numbers = {name: index for index, name in enumerate(classes)}
    labels = {name: SKIPPED if label.casefold() == mark else numbers.get(label) for name, label in given.items()}
    chosen, times = set(files), Counter(name for name, _label in rows)
    problems = {
        f"labels name no class of {', '.join(classes)}, correct them": [
            f"{name} ({label}){closest(label, classes)}"
            for name, label in rows
            if label and label not in numbers and label.casefold() != mark
        ],
        "labels are of images that were not chosen, delete these rows, or name with --selection the "
        "selection.safetensors that they were given for": [
            name for name in given if given[name] and name not in chosen
        ],
        "images are there more than once with other labels, keep the row that counts": [
            f"{name} ({', '.join(label for other, label in rows if other == name)})"
            for name, count in times.items()
            if count > 1
        ],
    }
    messages = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names]
    if missing := [name for name in files if not given.get(name)]:
        messages.insert(
            0,
            f"{len(missing)} of {len(files)} chosen images have no label yet, first {missing[0]}: load the table into "
            f"annotate's contact.html and go on, or write {mark} where no label can be given",
        )
    if messages:
        raise Contradictions([f"{origin}: {messages[0]}", *messages[1:]])
    return torch.tensor([labels[name] for name in files], dtype=torch.long)


def count_labels(content: bytes, origin: Path) -> int:
    """Return the number of images in a label file that have a label."""
    return sum(bool(label) for _name, label in _rows(content, origin))


def _spellings(names: Iterable[str]) -> dict[str, str]:
    """Return names by what a table may call them; what it was written with wins where two spellings meet."""
    names = list(names)
    found = {_composed(spelling).strip(): name for name in names for spelling in (name, as_text(name))}
    for spell in (str, as_text):
        found |= {spell(name).strip(): name for name in names}
    return found


def _meant(name: str, spellings: dict[str, str]) -> str:
    return spellings.get(name, spellings.get(_composed(name), name))


def _composed(text: str) -> str:
    """Return text with accents and letters as one character each, as most systems write them (NFC)."""
    return unicodedata.normalize("NFC", text)


def _rows(content: bytes, origin: Path) -> list[tuple[str, str]]:
    """Return the columns `file` and `label` of all rows that are not empty."""
    text = _decoded(content, origin)
    lines = text.splitlines(keepends=True)
    delimiter = None
    if lines and (line := _DELIMITER_LINE.match(lines[0].strip("\r\n"))):
        delimiter, text = line[1], "".join(lines[1:])
    if delimiter is None:
        first = next((line for line in lines if line.strip(",;\t \r\n")), "")
        delimiter = max(",;\t", key=first.count)
    rows = [row for row in _cells(text, delimiter, origin) if any(row)]
    heading = [" ".join(cell.split()).casefold() for cell in rows[0]] if rows else []
    columns = []
    for name in (FILE, LABEL):
        if heading.count(name) > 1:
            raise UserError(f"{origin} has {heading.count(name)} columns {name}; keep the one that counts")
        if name not in heading:
            raise UserError(f"{origin} has no columns {FILE} and {LABEL}; fill in the selection.csv that annotate left")
        columns.append(heading.index(name))
    file, label = columns
    found = [(row[file] if file < len(row) else "", row[label] if label < len(row) else "") for row in rows[1:]]
    if nameless := sum(1 for name, given in found if given and not name):
        raise UserError(f"{origin}: {nameless} labels stand in rows without a file; fill it in, or delete them")
    return [(name, given) for name, given in found if name]


def _cells(text: str, delimiter: str, origin: Path) -> list[list[str]]:
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process, which is given back
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise UserError(f"{origin} is no table ({error}); {SAVE_AS}") from error
    finally:
        csv.field_size_limit(limit)


def _decoded(content: bytes, origin: Path) -> str:
    """Return a table as text: UTF-8 or UTF-16, with or without a mark."""
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{origin} is a workbook of a spreadsheet; {SAVE_AS}")
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is no text in UTF-8; {SAVE_AS}") from error
