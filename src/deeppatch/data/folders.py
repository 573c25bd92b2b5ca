"""List the images of a folder as people have them: hidden files, links, other endings, classes that are numbers."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from deeppatch.data.files import shown_path
from deeppatch.errors import DataProblem
from deeppatch.progress import info

# further endings, read where Pillow, or what has been registered with it, reads them
OTHER_ENDINGS = (
    ".gif", ".jfif", ".jpe", ".apng", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".tga",
    ".dib", ".pnm", ".pbm", ".pcx", ".qoi",
)  # fmt: skip
SKIPPED_FOLDERS = {"__MACOSX"}


class NoImages(DataProblem):
    """A folder has no class, or a class has no image; `state` says so without what to do."""

    def __init__(self, folder: Path, state: str) -> None:
        super().__init__(f"{folder}: {state}; add images or remove the class")
        self.state = state


@dataclass
class Listing:
    """Image files with the names of their classes; `passed_over` counts other files by ending."""

    classes: tuple[str, ...]
    paths: list[str]
    labels: list[int]
    passed_over: Counter[str] = field(default_factory=Counter)


def endings() -> tuple[str, ...]:
    """Return the endings of files that are read as images."""
    known = Image.registered_extensions()
    return (*IMG_EXTENSIONS, *(each for each in OTHER_ENDINGS if known.get(each) in Image.OPEN))


def list_classes(folder: Path) -> Listing:
    """List FOLDER/CLASS/**/IMAGE; class names that are all numbers are ordered as numbers, others as text.

    Hidden files and folders and `__MACOSX` are left out, as are FIFOs and devices; a folder that links lead to twice is
    read once. Other files are counted in one message.

    Raises:
        DataProblem: When there is no class, a class without images, only one class, or a class whose name is no text.
    """
    above = _identities(folder)
    names = [each.name for each in _entries(folder) if each.is_dir() and _identity(Path(each.path)) not in above]
    if not names:
        raise NoImages(folder, f"Couldn't find any class folder in {folder}")
    if nameless := not_utf8(names):
        raise DataProblem(f"{folder}: names of classes are not UTF-8: {', '.join(nameless)}; rename these folders")
    found = Listing(tuple(ordered(names)), [], [])
    empty = []
    for label, name in enumerate(found.classes):
        paths = sorted(list_files(folder / name, found.passed_over), key=os.path.split)
        empty += [name] * (not paths)
        found.paths += paths
        found.labels += [label] * len(paths)
    tell_passed_over(folder, found.passed_over)
    if empty:
        known = ", ".join(endings())
        raise NoImages(
            folder, f"Found no valid file for the classes {', '.join(empty)}. Supported extensions are: {known}"
        )
    if len(names) == 1:
        raise DataProblem(
            f"{folder} has a single class, {names[0]}, with {len(found.paths)} images; a classifier needs at least two"
        )
    return found


def ordered(names: list[str]) -> list[str]:
    """Return class names in order: as numbers where all are, else as text.

    >>> ordered(["10", "9", "1"]), ordered(["10", "9", "a"])
    (['1', '9', '10'], ['10', '9', 'a'])
    """
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def list_files(folder: Path, passed_over: Counter[str]) -> list[str]:
    """Return the image files under a folder, in no particular order; `passed_over` counts others by ending."""
    wanted, found = endings(), []
    for path in files_under(folder):
        ending = Path(path).suffix.lower()
        if ending in wanted:
            found.append(path)
        else:
            passed_over[ending or "no ending"] += 1
    return found


def tell_passed_over(folder: Path, passed_over: Counter[str]) -> None:
    """Log in one line how many files of which endings are no images here."""
    if passed_over:
        counts = sorted(passed_over.items(), key=lambda each: (-each[1], each[0]))
        kinds = ", ".join(f"{shown_path(ending)} ({count})" for ending, count in counts)
        info(f"{folder}: {passed_over.total()} files that Pillow does not read as images are passed over: {kinds}")


def files_under(folder: Path) -> Iterator[str]:
    """Yield the files under a folder, also through links, but not those that lead back up or twice, nor hidden ones."""
    seen = _identities(folder)
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_file(follow_symlinks=False):  # known without asking the file system again
                yield entry.path
                continue
            try:
                state = entry.stat()
            except OSError:  # a link that leads nowhere: named as unreadable where its ending is an image's
                yield entry.path
                continue
            if stat.S_ISDIR(state.st_mode):
                if (state.st_dev, state.st_ino) not in seen:
                    seen.add((state.st_dev, state.st_ino))
                    waiting.append(Path(entry.path))
            elif stat.S_ISREG(state.st_mode):
                yield entry.path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, real folders before links to them, but nothing hidden."""
    try:
        with os.scandir(folder) as entries:
            kept = [each for each in entries if not each.name.startswith(".") and each.name not in SKIPPED_FOLDERS]
    except OSError as error:
        raise DataProblem(f"{folder}: {error.strerror}; check the folder and its permissions") from error
    return sorted(kept, key=lambda each: (each.is_symlink(), each.name))


def _identities(folder: Path) -> set[tuple[int, int]]:
    """Return what identifies a folder and all above it."""
    real = folder.resolve()
    return {_identity(each) for each in (real, *real.parents)}


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def not_utf8(names: Iterable[str]) -> list[str]:
    """Return those of some file names that are not UTF-8, with escapes for the bytes that are none."""
    return [shown_path(name) for name in names if shown_path(name) != name]
