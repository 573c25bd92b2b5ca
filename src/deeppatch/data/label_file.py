"""Read the file in which a person has labelled the images that annotate chose, or report all problems with it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.errors import Contradictions, UserError

FILE, LABEL = "file", "label"


def read_labels(content: bytes, origin: Path, files: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return the labels int64 (B,) of the chosen `files` (B), in their order, by the names of their classes.

    Raises Contradictions that name all missing, unknown and surplus labels at once; the file is never changed.
    """
    rows = _rows(content, origin)
    given = {row[FILE]: row[LABEL] for row in rows}
    known = {name: index for index, name in enumerate(classes)}
    repeated = [name for name, count in Counter(row[FILE] for row in rows).items() if count > 1]
    unknown = [f"{name} ({label})" for name, label in given.items() if label and label not in known]
    chosen = set(files)
    problems = {
        "chosen images have no label": [name for name in files if not given.get(name)],
        f"labels name no class of {', '.join(classes)}": unknown,
        "labels are of images that were not chosen": [name for name in given if given[name] and name not in chosen],
        "images are there more than once": repeated,
    }
    messages = [f"{len(found)} {what}: {', '.join(found)}" for what, found in problems.items() if found]
    if messages:
        raise Contradictions([f"{origin}: {messages[0]}", *messages[1:]])
    return torch.tensor([known[given[name]] for name in files], dtype=torch.long)


def count_labels(content: bytes, origin: Path) -> int:
    """Return the number of images in a label file that have a label."""
    return sum(bool(row[LABEL]) for row in _rows(content, origin))


def _rows(content: bytes, origin: Path) -> list[dict[str, str]]:
    """Return the columns `file` and `label`, separated by commas, or by semicolons or tabs from a spreadsheet."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is no text in UTF-8; save it as CSV UTF-8") from error
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if not {FILE, LABEL} <= set(reader.fieldnames or ()):
        raise UserError(f"{origin} has no columns {FILE} and {LABEL}; fill in the selection.csv that annotate left")
    return [{name: (row[name] or "").strip() for name in (FILE, LABEL)} for row in reader]
