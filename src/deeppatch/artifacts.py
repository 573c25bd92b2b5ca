"""Names, atomic saves, checked loads and provenance of every file under output/."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from deeppatch.errors import MissingArtifact, StaleArtifact, UserError

RECORD = "run.json"
# what torch and safetensors raise for files that they cannot read
DAMAGE = (
    safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError,
    TypeError, AttributeError, AssertionError, struct.error, OSError,
)  # fmt: skip


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def read_given(path: Path) -> bytes:
    """Return the content of a file that the user named; UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from error


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def state_digest(state: dict[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and values of a state dict; independent of device and layout."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_to_bytes(tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> bytes:
    """Serialise tensors as safetensors, with `meta` as JSON under one metadata key so that bytes repeat."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save_safetensors(plain, {"deeppatch": json.dumps(meta or {}, sort_keys=True)})


def tensors_from_bytes(content: bytes, origin: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of what `tensors_to_bytes` made; StaleArtifact when it is damaged."""
    try:
        tensors = load_safetensors(content)
        length = int.from_bytes(content[:8], "little")
        meta = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("deeppatch", "{}")
        return tensors, json.loads(meta)
    except (safetensors.SafetensorError, ValueError) as error:
        raise StaleArtifact(f"{origin} is damaged; delete it and run the stage that makes it again") from error


class Checkpoint:
    """The state of an unfinished run, replaced whole at each step; it goes when the run is finished.

    `settings` are what must not change between interruption and resumption. `writes` is False where another process
    writes for this one.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool, *, writes: bool = True) -> None:
        self.path = path
        self.settings = json.dumps(settings, sort_keys=True)
        self.writes = writes
        if not resume:
            self.remove()

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, "state": state}, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None where there is none; StaleArtifact when it is for other settings."""
        if not self.path.exists():
            return None
        digest, content = (whole := self.path.read_bytes())[:32], whole[32:]
        if hashlib.sha256(content).digest() != digest:
            raise StaleArtifact(f"{self.path} is damaged; delete it and run without -r")
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["settings"] != self.settings:
            before, now = json.loads(saved["settings"]), json.loads(self.settings)
            changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k, "absent") != now.get(k, "absent")]
            raise StaleArtifact(
                f"{self.path} was left by a run with other settings ({', '.join(changed)}); "
                "repeat those, or run without -r to start anew"
            )
        return saved["state"]

    def remove(self) -> None:
        """Delete the checkpoint."""
        if self.writes:
            self.path.unlink(missing_ok=True)


class Stage:
    """One run of one stage: its folder, what it reads (checked), what it writes (atomic), and its record.

    The record, run.json, is written last: outputs without one are those of an unfinished run. `writes` is False where
    another process writes for this one.
    """

    def __init__(self, output: Path, folder: Path, facts: dict[str, Any], *, writes: bool = True) -> None:
        self.writes = writes
        self.output = output
        self.folder = folder
        self.facts = facts
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self._start = time.monotonic()

    def read(self, path: Path, command: str) -> bytes:
        """Return an earlier stage's file; errors name it and `command`, which makes it (again).

        The file must be what its stage recorded, and made from inputs that have not changed since.
        """
        record_path = path.parent / RECORD
        if not path.is_file() or not record_path.is_file():
            raise MissingArtifact(path, command)
        content = path.read_bytes()
        try:
            record = json.loads(record_path.read_bytes())
            recorded, made_from = record["outputs"].get(path.name), dict(record["inputs"])
        except DAMAGE as error:
            raise StaleArtifact(f"{record_path} is damaged; make it again with: {command}") from error
        if recorded != sha256(content):
            raise StaleArtifact(f"{path} is damaged or was changed by hand; make it again with: {command}")
        for name, digest in made_from.items():
            origin = self.output / name
            if origin.exists() and sha256(origin.read_bytes()) != digest:
                raise StaleArtifact(f"{path} was made from another {origin}; make it again with: {command}")
        self.inherit(path, content)
        return content

    def inherit(self, path: Path, content: bytes) -> None:
        """Record a file as an input of this run."""
        absolute, root = path.resolve(), self.output.resolve()
        inside = absolute.is_relative_to(root)
        self.inputs[str(absolute.relative_to(root) if inside else absolute)] = sha256(content)

    def write(self, name: str, content: bytes) -> Path:
        """Write one output of this stage; the first one drops the record of an earlier run."""
        path = self.folder / name
        if not self.writes:
            return path
        if not self.outputs:
            (self.folder / RECORD).unlink(missing_ok=True)
        write_bytes(path, content)
        self.outputs[name] = sha256(content)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON output."""
        return self.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a CSV output."""
        return self.write(name, table.to_csv(index=False, float_format="%.6g").encode())

    def finish(self) -> None:
        """Write the record; what a killed run left half-written goes."""
        if not self.writes:
            return
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        record = {
            **self.facts,
            "wall_seconds": round(time.monotonic() - self._start, 2),
            "inputs": self.inputs,
            "outputs": self.outputs,
        }
        write_bytes(self.folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())

    def finished(self) -> dict[str, Any] | None:
        """Return the record of a finished run with the options of this one, its outputs being intact, or None."""
        with contextlib.suppress(*DAMAGE):
            record = json.loads((self.folder / RECORD).read_bytes())
            found = {name: sha256((self.folder / name).read_bytes()) for name in record["outputs"]}
            if found == record["outputs"] and record["settings"] == self.facts["settings"]:
                return dict(record)
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
