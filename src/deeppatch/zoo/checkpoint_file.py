"""Open a file of weights, safetensors or torch's own two formats, without unpickling it; tensors are read on demand."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_safetensors
from torch import Tensor

from deeppatch.artifacts import DAMAGE
from deeppatch.errors import WrongWeights
from deeppatch.zoo.inert_pickle import BadPickle, Call, read_pickle
from deeppatch.zoo.stored_tensors import BUILDERS, Storage, dtype_of, item_size, shown

UNREADABLE = (*DAMAGE, zipfile.BadZipFile, OverflowError, MemoryError)  # what damaged files raise in their readers
# what torch writes in front of its older format
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
SAVE_AGAIN = "save one with torch.save(model.state_dict(), FILE)"
# modules whose functions no weights need; nothing is called in any case, but a file that would have is not to be used
HOSTILE = {"os", "posix", "nt", "subprocess", "pty", "socket", "runpy", "importlib", "ctypes", "shutil", "webbrowser"}
HOSTILE_BUILTINS = {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint")}
# the beginnings of files that are no weights, and what they are
BEGINNINGS = {
    b"version https://git-lfs": "is a Git-LFS pointer, not the file itself; fetch it with: git lfs pull",
    b"\x89HDF": "is an HDF5 file, as Keras writes them; give weights of a PyTorch model",
    b"GGUF": "is a GGUF file; give weights of a PyTorch model",
    b"\x93NUMPY": "is a numpy array; " + SAVE_AGAIN,
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"<": "is a web page, not weights: its download has failed; fetch it again",
    b"{": "is JSON text, not weights; if it lists parts of a model, load that and " + SAVE_AGAIN,
}


@dataclass(frozen=True)
class Content:
    """The content of a file of weights: plain values with `StoredTensor` and `Call` among them."""

    root: Any
    called: frozenset[str] = frozenset()


def open_content(path: Path) -> Content:
    """Return the content of a .safetensors file or a torch checkpoint; nothing in it is imported or called.

    Raises WrongWeights, in one line with the reason, for every other file.
    """
    beginning = _beginning(path)
    safe, named_safe = _is_safetensors(beginning), path.suffix == ".safetensors"
    reader = next((read for start, read in _READERS.items() if beginning.startswith(start)), None)
    if safe and not named_safe:
        raise WrongWeights(f"{path} is a safetensors file by its content; rename it to {path.stem}.safetensors")
    if reader and named_safe:
        raise WrongWeights(f"{path} is a torch checkpoint by its content; rename it to {path.stem}.pt")
    if safe:
        return Content(_safetensors(path))
    if reader is None:
        raise WrongWeights(f"{path} {_what_it_is(beginning, path)}")
    try:
        content = reader(path)
    except UNREADABLE as error:
        raise WrongWeights(f"{path} is damaged or cut off; fetch or save it again") from error
    _refuse_hostile(content, path)
    return content


def _beginning(path: Path) -> bytes:
    if path.is_dir():
        raise WrongWeights(f"{path} is a folder; name the file of the weights in it")
    if not path.is_file():
        raise WrongWeights(f"{path}: there is no such file; check the path")
    try:
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise WrongWeights(f"{path}: {error.strerror}; check its permissions") from error
    if not beginning:
        raise WrongWeights(f"{path} is damaged: it is empty; fetch or save it again")
    return beginning


def _refuse_hostile(content: Content, path: Path) -> None:
    hostile = {name for name in content.called if name.split(".")[0] in HOSTILE or name in HOSTILE_BUILTINS}
    if hostile:
        raise WrongWeights(
            f"{path} would run {shown(min(hostile))} where torch.load unpickles it; nothing was run here: do not use "
            "it, and get the weights from elsewhere"
        )


def _is_safetensors(beginning: bytes) -> bool:
    return len(beginning) > 8 and beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 31


def _what_it_is(beginning: bytes, path: Path) -> str:
    """Say what a file is that holds no weights, and what to do."""
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")
    for known, words in BEGINNINGS.items():
        if start.startswith(known):
            return words
    if path.suffix == ".onnx":
        return "is an ONNX model, whose training weights are gone; give the checkpoint that it was exported from"
    if beginning[257:262] == b"ustar":
        return (
            "is a tar archive; unpack it, or if torch wrote it before 2017, load it with that torch and save it again"
        )
    return "is damaged, or is neither a safetensors file nor a torch checkpoint; fetch or save it again"


def _safetensors(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        announced = max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
        if len(content) < 8 + length + announced:
            raise WrongWeights(
                f"{path} is damaged: it has {len(content)} of {8 + length + announced} bytes; fetch it again"
            )
        return load_safetensors(content)
    except UNREADABLE as error:
        raise WrongWeights(f"{path} is damaged or cut off; fetch or save it again") from error


# --- torch's formats


def _zip_archive(path: Path) -> Content:
    """Read the archive that torch.save writes since 2020."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise WrongWeights(
            f"{path} is damaged: the end of the archive is missing, as after a broken download; fetch it again"
        ) from error
    with archive:
        members = {member.filename: member for member in archive.infolist()}
        main = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        folder = main.removesuffix("data.pkl") if main else ""
        if main and f"{folder}constants.pkl" in members:
            raise WrongWeights(f"{path} is a TorchScript program; load it with torch.jit.load and {SAVE_AGAIN}")
        if main is None:
            raise WrongWeights(f"{path} {_other_archive(list(members))}")
        big = f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") == b"big"

        def storage(reference: Any) -> Any:
            _word, kind, key, _place, _count = reference
            member = members[f"{folder}data/{key}"]
            return Storage(dtype_of(kind), partial(_member, path, member, item_size(dtype_of(kind)) if big else 1))

        with archive.open(main) as file:
            root, called = read_pickle(file, BUILDERS, storage)
    return Content(root, frozenset(called))


def _other_archive(names: list[str]) -> str:
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of numpy arrays; put tensors into a dict and {SAVE_AGAIN}"
    if any("serialized_exported_program" in name or name.endswith("archive_format") for name in names):
        return f"is a program of torch.export; take its state dict and {SAVE_AGAIN}"
    return "is a zip archive that torch did not write; unpack it, and give the file of the weights in it"


def _member(path: Path, member: zipfile.ZipInfo, item: int, start: int, count: int) -> bytes:
    """Return bytes of a member; its checksum is not compared, because torch may be told to write none."""
    with path.open("rb") as file:
        if member.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(file) as archive:
                return _in_own_order(archive.read(member)[start : start + count], item)
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(member.header_offset + 30 + name + extra + start)
        return _in_own_order(file.read(max(min(count, member.file_size - start), 0)), item)


def _in_own_order(content: bytes, item: int) -> bytes:
    """Return numbers of `item` bytes, the highest byte first, as this machine has them; `item` is 1 for others."""
    if item == 1 or sys.byteorder == "big":
        return content
    usable = len(content) - len(content) % item
    return b"".join(content[start : start + item][::-1] for start in range(0, usable, item))


def _legacy(path: Path) -> Content:
    """Read the format that torch.save wrote before: four pickles, then the numbers of every storage."""
    places: dict[Any, tuple[int, int]] = {}

    def storage(reference: Any) -> Any:
        if reference[0] == "module":  # a pickled module brings its source
            return Call(reference[1], ())
        _word, kind, key, _place, _count, *view = reference
        dtype = dtype_of(kind)
        sizes[key] = item_size(dtype)
        shift = view[0][1] * sizes[key] if view and view[0] else 0
        return Storage(dtype, partial(_legacy_bytes, path, places, key, shift))

    sizes: dict[Any, int] = {}
    with path.open("rb") as file:
        if read_pickle(file, {})[0] != LEGACY_MAGIC:
            raise WrongWeights(f"{path} was written by pickle.dump, not by torch.save; load it and {SAVE_AGAIN}")
        read_pickle(file, {})
        read_pickle(file, {})
        root, called = read_pickle(file, BUILDERS, storage)
        for key in read_pickle(file, {})[0]:
            (count,) = struct.unpack("<q", file.read(8))
            places[key] = (file.tell(), count * sizes[key])
            file.seek(count * sizes[key], 1)
        if file.tell() > path.stat().st_size:
            raise BadPickle("cut off")
    return Content(root, frozenset(called))


def _legacy_bytes(
    path: Path, places: Mapping[Any, tuple[int, int]], key: Any, shift: int, start: int, count: int
) -> bytes:
    place, total = places[key]
    with path.open("rb") as file:
        file.seek(place + shift + start)
        return file.read(max(min(count, total - shift - start), 0))


_READERS: dict[bytes, Callable[[Path], Content]] = {b"PK\x03\x04": _zip_archive, b"\x80": _legacy}
