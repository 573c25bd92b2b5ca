"""Commands in forked processes: each costs what it computes, can be killed at any moment, and leaves this one alone.

The process that forks must never have computed a gradient: torch's engine does not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import deeppatch
from deeppatch.cli import main

FSYNC = os.fsync  # the tests' own process does not wait for the disk; these do
ENVIRONMENT = {
    "DEEPPATCH_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}  # fmt: skip
LONGEST = 900.0  # seconds of one command


@dataclass(frozen=True)
class Ended:
    """How a process has ended: its status, negative for a signal, what it said, and after how many seconds."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def fault(self) -> str | None:
        """Return what is wrong with this as an answer to a mistake: status 2 and one line are right."""
        if self.status != 2:
            return f"status {self.status}: {(self.err or self.out).strip()[-300:]}"
        if self.err.count("\n") != 1 or not self.err.startswith("error: ") or not self.err.endswith("\n"):
            return f"not one line: {self.err[-300:]!r}"
        return "a traceback" if "Traceback" in self.out else None


def import_everything() -> None:
    """Import the whole package and what it imports late, so that no forked process has to."""
    for module in pkgutil.walk_packages(deeppatch.__path__, "deeppatch."):
        importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "sklearn.cluster", "scipy.stats", "onnx", "onnxscript", "torch.export"):
        importlib.import_module(name)


class Running:
    """A command in a process of its own; `prepare` is called there before it begins."""

    def __init__(self, script: str, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self._start = time.monotonic()
        self.process = os.fork()
        if not self.process:
            os._exit(self._run(script, arguments, prepare))

    def _run(self, script: str, arguments: list[str], prepare: Callable[[], object]) -> int:
        try:
            with Path(os.devnull).open() as nothing:
                os.dup2(nothing.fileno(), 0)
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            os.fsync = FSYNC
            os.environ.update(ENVIRONMENT)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            return main.guarded(script, arguments, "python src/{script}.py")
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()

    def wait(self, seconds: float = LONGEST) -> Ended:
        """Wait until the process has ended, and kill it where that takes longer."""
        handle = os.pidfd_open(self.process)
        try:
            ready, _, _ = select.select([handle], [], [], seconds)
        finally:
            os.close(handle)
        return self._ended(os.waitpid(self.process, 0)[1]) if ready else self.kill()

    def kill(self) -> Ended:
        """Kill the process, as `kill -9` does."""
        os.kill(self.process, signal.SIGKILL)
        return self._ended(os.waitpid(self.process, 0)[1])

    def _ended(self, status: int) -> Ended:
        seconds = time.monotonic() - self._start
        said = []
        for file in self._files:
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(os.waitstatus_to_exitcode(status), said[0], said[1], seconds)


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system in memory of `size` bytes on a folder within the block; yields whether that is allowed."""
    allowed = os.geteuid() == 0 and _succeeds("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield allowed
    finally:
        if allowed:
            _succeeds("umount", "--lazy", str(folder))


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False
