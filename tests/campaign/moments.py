"""The moments at which a process is killed or finds the disk full: at a file operation, or after so many bytes.

Installed in the forked process. A file operation is a half-written file, an fsync, a new name, a removal.
"""

from __future__ import annotations

import errno
import os
import pathlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeppatch import storage

OPERATIONS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")


class Partial:
    """A file that is being written; `half` is called when half of a content is in it, `before` with each content."""

    def __init__(self, file: Any, half: Callable[[], object], before: Callable[[Any, bytes], object]) -> None:
        self._file, self._half, self._before = file, half, before

    def write(self, content: bytes) -> int:
        self._before(self._file, content)
        middle = len(content) // 2
        self._file.write(content[:middle])
        self._file.flush()
        self._half()
        self._file.write(content[middle:])
        return len(content)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def watch(at: Callable[[], object], before: Callable[[Any, bytes], object] = lambda _file, _content: None) -> None:
    """Call `at` at each file operation of this process from now on, and `before` with what is written."""
    opened = pathlib.Path.open

    def open_watched(path: Path, mode: str = "r", *given: Any, **options: Any) -> Any:
        file = opened(path, mode, *given, **options)
        return Partial(file, at, before) if "w" in mode and "b" in mode else file

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            at()
            found = operation(*given, **options)
            at()
            return found

        return call

    pathlib.Path.open = open_watched  # type: ignore[method-assign]
    for name in OPERATIONS:
        setattr(os, name, watched(getattr(os, name)))
    storage._exchanged = watched(storage._exchanged)


def counting(path: Path) -> Callable[[], None]:
    """Return what lets a process note each of its file operations as a byte in a file."""

    def prepare() -> None:
        notes = path.open("ab", buffering=0)
        watch(lambda: notes.write(b"."))

    return prepare


def killed_at(number: int) -> Callable[[], None]:
    """Return what lets a process be killed at its file operation of this number, from 1."""

    def prepare() -> None:
        left = [number]

        def at() -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(at)

    return prepare


def full_after(size: int) -> Callable[[], None]:
    """Return what lets the disk of a process be full when it has written this many bytes."""

    def prepare() -> None:
        left = [size]

        def before(file: Any, content: bytes) -> None:
            if len(content) > left[0]:
                file.write(content[: left[0]])
                left[0] = 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= len(content)

        watch(lambda: None, before)

    return prepare
