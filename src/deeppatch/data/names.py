"""The names of data sets, and checks of them that read no image."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deeppatch.errors import DataProblem, closest

DATASET_NAMES = (
    "digits",
    "cifar10",
    "cifar100",
    "svhn",
    "gtsrb",
    "svhn_5",
    "digits_5",
    "stl10",
    "tinyimagenet",
    "imagenet",
)
# a weak model's data: some classes of one data set and last the class to correct, which is one of this number
MIXES = {"cifar10-mix": 10, "svhn-mix": 5, "digits-mix": 5}

FROM_FILES = ("tinyimagenet", "imagenet")  # their images may stay on disk

FILE_KINDS = ("folder", "npz", "hf")  # a user's own images: an image folder, arrays, a data set of Hugging Face's


def names() -> list[str]:
    """Return the names of all data sets but image folders; T stands for the class to correct of a mix."""
    return [*DATASET_NAMES, *(f"{mix}:T" for mix in MIXES)]


def selection(name: str) -> list[tuple[str, list[str]]] | None:
    """Return the data sets of NAME:CLASSES+NAME:CLASSES, each with the classes that are selected; None for others.

    Classes are indices, ranges of indices or names: `digits:0-4+svhn:7,9`. No colon means all. DataProblem where a data
    set is unknown or can be no part of a selection, and where classes are missing after a colon, or are only one.

    >>> selection("digits:0-2,7+svhn")
    [('digits', ['0', '1', '2', '7']), ('svhn', [])]
    """
    kind, colon, _ = name.partition(":")
    if kind in FILE_KINDS or "+" not in name and not (colon and kind in DATASET_NAMES):
        return None
    found = []
    for part in name.split("+"):
        own, colon, classes = part.partition(":")
        if part != part.strip() or ":" in classes:
            raise DataProblem(f"{name}: join data sets with + and without blanks, as digits:0-4+svhn:7,9")
        if own not in DATASET_NAMES or own in FROM_FILES:
            possible = [each for each in DATASET_NAMES if each not in FROM_FILES]
            raise DataProblem(
                f"{name}: {own} cannot be a part of a selection of classes{closest(own, possible)}; choose from "
                f"{', '.join(possible)}"
            )
        chosen = [each for word in classes.split(",") if word.strip() for each in _range(name, word.strip())]
        if colon and not chosen:
            raise DataProblem(
                f"{name}: name the classes after {own}:, as {own}:0-4 or {own}:0,2, or leave the colon out"
            )
        found.append((own, chosen))
    if len(found) == 1 and len(found[0][1]) == 1:
        raise DataProblem(f"{name} is one class; a classifier needs two or more")
    return found


def _range(name: str, word: str) -> list[str]:
    """Return the classes of one word: those of a range of indices, or itself."""
    first, dash, last = word.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        return [word]
    if max(len(first), len(last)) > 5:
        raise DataProblem(f"{name}: no data set has a class of such an index")
    if int(last) < int(first):
        raise DataProblem(f"{name}: {word} holds no class; write the smaller index first, {last}-{first}")
    return [str(number) for number in range(int(first), int(last) + 1)]


def check_name(name: str) -> None:
    """Raise DataProblem unless `name` is that of a data set."""
    kind, _, detail = name.partition(":")
    if kind in MIXES and detail not in map(str, range(MIXES[kind])):
        raise DataProblem(f"{name}: name the class to correct, {kind}:0 to {kind}:{MIXES[kind] - 1}")
    if kind in FILE_KINDS and detail or selection(name) is not None:
        return
    if name not in DATASET_NAMES and kind not in MIXES:
        guess = closest(name, [*DATASET_NAMES, *MIXES])
        raise DataProblem(
            f"{name}: unknown data set{guess}; choose from {', '.join(names())}, folder:PATH, npz:FILE or hf:PATH, "
            "or select classes, as digits:0-4"
        )


def check_path(name: str) -> None:
    """Raise DataProblem unless the files of a user's own images are there."""
    kind, _, detail = name.partition(":")
    if kind == "folder":
        check_folder(Path(detail))
    elif kind == "npz" and not Path(detail).is_file():
        raise DataProblem(f"{detail}: there is no such file; check the path")
    elif kind == "hf" and not Path(detail).is_dir():
        raise DataProblem(
            f"{detail}: there is no such folder; give the one that save_to_disk wrote, or of parquet files"
        )


def check_folder(path: Path) -> None:
    """Raise DataProblem unless `path` holds the two parts of an image folder."""
    for folder in (path / "train", path / "test"):
        if not folder.is_dir():
            raise DataProblem(f"{folder} is missing; an image folder is laid out as {path}/{{train,test}}/CLASS/IMAGE")


def slug(name: str) -> str:
    """Return the name under which a data set's artifacts are kept.

    `folder:a/b` becomes folder-b-HASH, by its path, `npz:a/b.npz` npz-b-HASH, and `svhn-mix:3` svhn-mix-3.
    """
    kind, _, detail = name.partition(":")
    if kind not in FILE_KINDS:
        return name.replace(":", "-")
    path = Path(detail).resolve()
    shown = path.name.removesuffix(".npz") if kind == "npz" else path.name
    return f"{kind}-{shown}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
