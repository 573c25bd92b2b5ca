"""Files that are whole or absent: atomic writes, folders that take another's place at once, hashes, and records."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from deeppatch.errors import UserError

RECORD = "run.json"
FREE_BYTES = 16 * 2**20  # the least with which a run begins
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux' renameat2
_HERE = -100  # AT_FDCWD


def unique_name(name: str) -> str:
    """Return a hidden name for an unfinished file, which no other process uses."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file of this process in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(unique_name(path.name))
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path) if error.filename in (None, str(partial)) else error.filename
        raise


def check_place(folder: Path) -> None:
    """Raise an error unless a run may begin to write `folder`, which need not exist yet.

    PermissionError where the folder, or the nearest one above it, is not writable; UserError where less than 16 MiB are
    free, which a checkpoint of a small network fills.
    """
    there = [each for each in (folder, *folder.parents) if each.exists()]
    for each in there[: 2 if there[0] == folder else 1]:
        if each.is_dir() and not os.access(each, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(each))
    disk = shutil.disk_usage(there[0])
    if disk.total and disk.free < FREE_BYTES:
        raise UserError(
            f"no space is left for {folder}: {disk.free / 2**20:.1f} MiB are free, and a run begins with "
            f"{FREE_BYTES // 2**20} or more; free some, or choose another --output_dir"
        )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the file system can (others, such as Windows', cannot open folders)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(new: Path, place: Path) -> None:
    """Let the folder `new` take the place of another one; files there that its record does not name come along.

    Where the system can exchange two names (Linux) there is a whole folder at every moment.
    """
    if place.exists():
        _keep_foreign_files(place, new)
        old = new if _exchanged(new, place) else _set_aside(place)
        if old is not new:
            new.rename(place)
        shutil.rmtree(old)
    else:
        new.rename(place)
    sync_folder(place.parent)


def recover(place: Path) -> None:
    """Finish or undo a `replace_folder` during which the process was killed."""
    aside = _aside(place)
    if not aside.exists():
        return
    if place.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(place)


def _keep_foreign_files(old: Path, new: Path) -> None:
    """Copy the files that are not in the record of `old`, such as a user's notes, to `new`."""
    known = {RECORD, *(read_record(old) or {}).get("outputs", {})}
    for path in old.iterdir():
        if path.name not in known and not path.name.endswith(".partial") and not (new / path.name).exists():
            if path.is_dir():
                shutil.copytree(path, new / path.name)
            else:
                shutil.copy2(path, new / path.name)


def _exchanged(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
    return False


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def _set_aside(place: Path) -> Path:
    return place.rename(_aside(place))


def read_given(path: Path) -> bytes:
    """Return the content of a file that the user named; UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from error


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text; ValueError where it is none, nested too deeply, or has NaN or infinity.

    >>> parse_json('{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        return json.loads(content, parse_constant=_refused, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refused(text)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished run, or None where a folder has none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        record = parse_json((folder / RECORD).read_bytes())
        if isinstance(record, dict) and _is_record(record):
            return record
    return None


def _is_record(record: dict[str, Any]) -> bool:
    """Tell whether what a record holds is of the types that readers rely on; older versions may lack the optional."""
    if not all(is_of(record.get(name), {str: str}) for name in ("inputs", "outputs")):
        return False
    optional = {
        "settings": {str: object}, "defaults": {str: object}, "consumed": {str: {str: object}}, "stage": str,
        "command": str, "wall_seconds": (int, float), "data": {str: object},
    }  # fmt: skip
    data = {"classes": [str], "image_size": [int], "parts": {str: {str: object}}}
    given = record.get("data", {})
    return all(is_of(record[name], kind) for name, kind in optional.items() if name in record) and (
        not given or all(is_of(given.get(name), kind) for name, kind in data.items())
    )


def is_of(value: Any, kind: Any) -> bool:
    """Tell whether a JSON value is of a kind: a type or several, [kind] for a list, {str: kind} for an object.

    >>> is_of({"a": [1, 2]}, {str: [int]}), is_of({"a": ["1"]}, {str: [int]}), is_of(True, int)
    (True, False, False)
    """
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_of(each, kind[0]) for each in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(is_of(each, kind[str]) for each in value.values())
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, object))
