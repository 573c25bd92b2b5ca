"""Describe the data of a run by classes, sizes and digests, and compare two descriptions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deeppatch.cache import ContentCache, Entry
from deeppatch.data.files import Files, StoredPixels, files_state
from deeppatch.data.images import Images
from deeppatch.storage import sha256


def describe(parts: Mapping[str, Images], classes: tuple[str, ...], cache: Path | None = None) -> dict[str, Any]:
    """Describe data for a run's record.

    Args:
        parts: Images by the name of the part that they are: train, val and test.
        classes: Names of the classes, in the order of the labels.
        cache: Folder that keeps the hashes of image files' contents, so that they are computed once.

    Returns:
        Classes, image size, and for each part the number of images and a SHA-256 of pixels and labels.
    """
    shape = next(iter(parts.values())).pixels.shape[1:]
    found = {name: {"images": len(part), "digest": _digest(part, cache)} for name, part in parts.items()}
    return {"classes": list(classes), "image_size": list(shape), "parts": found}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between two descriptions in words."""
    if before["classes"] != now["classes"]:
        order = " (the same in another order)" if sorted(before["classes"]) == sorted(now["classes"]) else ""
        yield f"classes {_listed(before['classes'])} then, {_listed(now['classes'])} now{order}"
    if before["image_size"] != now["image_size"]:
        yield f"images of {_size(before)} pixels then, {_size(now)} now"
    for name, part in now["parts"].items():
        old = before["parts"].get(name)
        if old is None or old == part:
            continue
        if old["images"] != part["images"]:
            yield f"{old['images']} {name} images then, {part['images']} now"
        else:
            yield f"other {name} images or labels than then"


def _digest(images: Images, cache: Path | None) -> str:
    digest = hashlib.sha256(images.labels.cpu().numpy().tobytes())
    if isinstance(images.pixels, Tensor):
        for part in images.pixels.split(4096):
            digest.update(part.cpu().contiguous().numpy().tobytes())
    else:
        digest.update(_stored_digest(images.pixels, cache).encode())
    return digest.hexdigest()


def _stored_digest(pixels: StoredPixels, cache: Path | None) -> str:
    return contents_digest(pixels.paths, cache) if isinstance(pixels, Files) else pixels.digest()


def contents_digest(paths: Sequence[str], cache: Path | None) -> str:
    """Hash the contents of all files; they are read again only where a name, a size or a time has changed."""
    kept, facts = ContentCache(cache) if cache else None, {"files": files_state(paths)}
    if kept and (entry := kept.read(facts)):
        return str(entry.notes["contents"])
    digest = hashlib.sha256()
    for file in paths:
        digest.update(os.fsencode(Path(file).name) + f" {sha256(Path(file).read_bytes())}\n".encode())
    if kept:
        kept.write(facts, Entry({}, {"contents": digest.hexdigest()}))
    return digest.hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _size(described: Mapping[str, Any]) -> str:
    return "x".join(map(str, described["image_size"][1:]))
