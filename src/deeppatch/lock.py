"""One writer for each folder: a lock file names the process and its host, and is taken over when they are gone."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from deeppatch.errors import Busy

HEARTBEAT = 30.0  # seconds between signs of life
SILENCE = 300.0  # seconds without one after which an owner on another host is dead
_held: ContextVar[list[FolderLock] | None] = ContextVar("locks held by this run", default=None)


@contextlib.contextmanager
def released_at_end() -> Iterator[None]:
    """Release all locks that are acquired within the block, however it ends."""
    held: list[FolderLock] = []
    token = _held.set(held)
    try:
        yield
    finally:
        _held.reset(token)
        for lock in held:
            lock.release()


class FolderLock:
    """The right to write a folder, as a hidden file beside it.

    A second writer gets Busy. A dead owner's lock is taken over: on the same host one whose process has ended, else one
    that has given no sign of life for five minutes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.with_name(f".{folder.name}.lock")
        self._stop: threading.Event | None = None
        self._content = b""
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Take the lock, or raise Busy."""
        self._made = [each for each in self.path.parents if not each.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        me = {"process": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()}
        self._content = json.dumps({**me, "token": secrets.token_hex(8)}).encode()
        while not self._created():
            self._displace_dead_owner()
        for attempt in self.path.parent.glob(
            f"{glob.escape(self.path.name)}.*"
        ):  # of who was killed, or comes too late
            attempt.unlink(missing_ok=True)
        self._stop = threading.Event()
        threading.Thread(target=self._beat, args=(self._stop,), daemon=True).start()
        if (held := _held.get()) is not None:
            held.append(self)

    def release(self) -> None:
        """Give the lock back, if this object holds it."""
        if self._stop is None:
            return
        self._stop.set()
        self._stop = None
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink()
        with contextlib.suppress(OSError):  # what was made for a run that has left nothing goes again
            for folder in self._made:
                folder.rmdir()

    def _created(self) -> bool:
        """Write the lock file, whole from its first moment on; False where there is one."""
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            mine.write_bytes(self._content)
            try:
                os.link(mine, self.path)
            except PermissionError:  # a file system without links
                with self.path.open("xb") as file:
                    file.write(self._content)
        except (FileExistsError, FileNotFoundError):  # there is a lock, or its new owner has deleted this attempt
            return False
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _displace_dead_owner(self) -> None:
        try:
            content, silence = self.path.read_bytes(), time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        if owner := _living(content, silence):
            raise Busy(self.folder, owner["process"], owner["host"])
        aside = self.path.with_name(f"{self.path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            self.path.rename(aside)
            if aside.read_bytes() != content:  # that was the lock of who was faster: give it back
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _living(content: bytes, silence: float) -> dict[str, Any] | None:
    """Return the owner that a lock file names if it is alive, and not an earlier run of this very process."""
    try:
        owner = json.loads(content)
        process, started, host = int(owner["process"]), owner["started"], owner["host"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if host != socket.gethostname():
        return dict(owner) if silence < SILENCE else None
    alive = process != os.getpid() and _runs(process) and _started(process) == started
    return dict(owner) if alive else None


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(process: int) -> str | None:
    """Return when a process started, in the kernel's own unit; None where the system does not tell."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return None
