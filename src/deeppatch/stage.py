"""One run of one stage: the folder that it leaves, what it reads, and the record of where everything is from."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from deeppatch.errors import Busy, MissingArtifact, StaleArtifact
from deeppatch.lock import FolderLock
from deeppatch.storage import (
    RECORD,
    check_place,
    is_of,
    parse_json,
    read_record,
    recover,
    replace_folder,
    sha256,
    write_bytes,
)


class Stopwatch:
    """The wall time of a run and of its phases, in seconds, added up over interruptions.

    A checkpoint keeps `state()`, and the run that goes on from it gives that to `go_on`.
    """

    def __init__(self) -> None:
        self._start, self._earlier, self._run = time.monotonic(), 0.0, secrets.token_hex(8)
        self._phases: dict[str, float] = {}
        self._now: tuple[str, float] | None = None

    @property
    def seconds(self) -> float:
        """The wall time so far, that of interrupted runs included."""
        return self._earlier + time.monotonic() - self._start

    @property
    def phases(self) -> dict[str, float]:
        """The same of each phase."""
        found = dict(self._phases)
        if self._now:
            name, start = self._now
            found[name] = found.get(name, 0.0) + time.monotonic() - start
        return found

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as that of a phase."""
        self._now = name, time.monotonic()
        yield
        self._phases, self._now = self.phases, None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"run": self._run, "seconds": self.seconds, "phases": self.phases}

    def go_on(self, state: Any) -> None:
        """Add the time of an interrupted run, of which several checkpoints may know; what is no state adds none."""
        kinds = {"run": str, "seconds": float, "phases": {str: float}}
        if not isinstance(state, dict) or not all(is_of(state.get(name), kind) for name, kind in kinds.items()):
            return
        if state["run"] != self._run:
            self._earlier = max(self._earlier, state["seconds"])
            for name, seconds in state["phases"].items():
                self._phases[name] = max(self._phases.get(name, 0.0), seconds)


class Stage:
    """One run of one stage: its folder, what it reads (checked), what it writes (atomic), and its record.

    Everything is written into a hidden folder beside `folder`, `unfinished`, which takes its place when the run is
    finished: until then an earlier finished run stays as it is. The record, run.json, is written last. One process
    writes at a time; `writes` is False where another one writes for this one.
    """

    def __init__(self, output: Path, folder: Path, facts: dict[str, Any], *, writes: bool = True) -> None:
        self.writes = writes
        self.output = output
        self.folder = folder
        self.unfinished = folder.with_name(f".{folder.name}.unfinished")
        self.facts = facts
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.watch = Stopwatch()
        self._lock: FolderLock | None = None

    def begin(self, *, resume: bool = False) -> None:
        """Take the folder for this run; without `resume` what an unfinished run has left is deleted.

        Busy where another process writes it; PermissionError or UserError where it cannot be written, or no space is
        left, so that this is known before the work.
        """
        if not self.writes or self._lock is not None:
            return
        for place in (self.folder, self.unfinished):
            check_place(place)
        lock = FolderLock(self.folder)
        lock.acquire()
        self._lock = lock
        recover(self.folder)
        if not resume and self.unfinished.exists():
            shutil.rmtree(self.unfinished)
        for partial in self.unfinished.glob("**/.*.partial"):  # half-written when an earlier run was killed
            partial.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what a run that was killed when it had finished has left beside its folder: lock and old files."""
        if not self.writes or not (FolderLock(self.folder).path.exists() or self.unfinished.exists()):
            return
        lock = FolderLock(self.folder)
        with contextlib.suppress(Busy, OSError):  # another run writes, or the folder is only read
            lock.acquire()
            recover(self.folder)
            shutil.rmtree(self.unfinished, ignore_errors=True)
        lock.release()

    def read(self, path: Path, command: str) -> bytes:
        """Return an earlier stage's file; errors name it and `command`, which makes it (again).

        The file must be what its stage recorded, and made from inputs that have not changed since.
        """
        record, content = self._recorded(path, command)
        if sha256(content) != record["outputs"].get(path.name):
            record, content = self._recorded(path, command)  # another run may just have taken its place
        if sha256(content) != record["outputs"].get(path.name):
            raise StaleArtifact(f"{path} is damaged or was changed by hand; make it again with: {command}")
        for name, digest in record["inputs"].items():
            origin = self.output / name
            if origin.is_file() and sha256(origin.read_bytes()) != digest:
                raise StaleArtifact(f"{path} was made from another {origin}; make it again with: {command}")
        self.inherit(path, content)
        return content

    def read_json(self, path: Path, command: str, **kinds: Any) -> dict[str, Any]:
        """Return what an earlier stage's JSON file holds, checked as by `read`; `kinds` are those of its values."""
        with contextlib.suppress(ValueError):
            found = parse_json(self.read(path, command))
            if is_of(found, {str: object}) and all(is_of(found.get(name), kind) for name, kind in kinds.items()):
                return dict(found)
        raise StaleArtifact(f"{path} does not hold what its stage writes; make it again with: {command}")

    def _recorded(self, path: Path, command: str) -> tuple[dict[str, Any], bytes]:
        record_path = path.parent / RECORD
        if not path.is_file() or not record_path.is_file():
            raise MissingArtifact(path, command)
        record = read_record(path.parent)
        if record is None:
            raise StaleArtifact(f"{record_path} is damaged; make it again with: {command}")
        return record, path.read_bytes()

    def inherit(self, path: Path, content: bytes) -> None:
        """Record a file as an input of this run."""
        absolute, root = path.resolve(), self.output.resolve()
        inside = absolute.is_relative_to(root)
        self.inputs[str(absolute.relative_to(root) if inside else absolute)] = sha256(content)

    def write(self, name: str, content: bytes) -> Path:
        """Write one output of this stage, and return where it will be when the run is finished."""
        if self.writes:
            self.begin()
            write_bytes(self.unfinished / name, content)
            self.outputs[name] = sha256(content)
        return self.folder / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON output."""
        return self.write(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a CSV output."""
        return self.write(name, table.to_csv(index=False, float_format="%.6g").encode())

    def finish(self) -> None:
        """Write the record, and let the finished run take its place; what else the run has left goes."""
        if not self.writes:
            return
        self.begin()
        phases = {name: round(seconds, 2) for name, seconds in self.watch.phases.items()}
        record = {
            **self.facts,
            "wall_seconds": round(self.watch.seconds, 2),
            **({"seconds": phases} if phases else {}),
            "inputs": self.inputs,
            "outputs": self.outputs,
        }
        for path in self.unfinished.iterdir():
            if path.name not in self.outputs:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_bytes(self.unfinished / RECORD, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
        replace_folder(self.unfinished, self.folder)
        assert self._lock is not None
        self._lock.release()

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run with the options of this one, its outputs being intact, or None."""
        record = read_record(self.folder)
        if record is None or record.get("settings") != self.facts["settings"]:
            return None
        with contextlib.suppress(OSError):
            found = {name: sha256((self.folder / name).read_bytes()) for name in record["outputs"]}
            return record if found == record["outputs"] else None
        return None


def git_revision() -> str | None:
    """Return the revision of the source tree that runs, marked -dirty where it differs, or None where git has none."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        # an installed copy may lie inside somebody else's repository
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)  # noqa: S603
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    return None
