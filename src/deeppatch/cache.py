"""A content-addressed cache: tensors in a folder, each file named by a digest of what its content depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.progress import info
from deeppatch.storage import write_bytes


def content_key(facts: Mapping[str, object]) -> str:
    """Return a hash of the facts as 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """The content of a file of the cache: tensors by name, and notes as JSON values."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ContentCache:
    """A folder of tensors, each file named by the facts that its content depends on.

    An entry contains its facts and a digest of its tensors; a damaged entry counts as absent, which is logged.
    Files are written whole or not at all.

    >>> import tempfile
    >>> import torch
    >>> cache = ContentCache(Path(tempfile.mkdtemp()))
    >>> cache.read({"seed": 1}) is None
    True
    >>> cache.write({"seed": 1}, Entry({"numbers": torch.arange(3)}))
    >>> cache.read({"seed": 1}).tensors["numbers"].tolist()
    [0, 1, 2]
    """

    folder: Path

    def path(self, facts: Mapping[str, object]) -> Path:
        """Return the path of the entry of these facts, whether it exists or not."""
        return self.folder / f"{content_key(facts)}.safetensors"

    def read(self, facts: Mapping[str, object]) -> Entry | None:
        """Return the entry of these facts, with tensors on the CPU; None when it is absent or damaged."""
        path = self.path(facts)
        if not path.exists():
            return None
        with contextlib.suppress(StaleArtifact):
            tensors, meta = tensors_from_bytes(path.read_bytes(), path)
            noted = isinstance(meta.get("notes"), dict)
            if noted and meta.get("digest") == state_digest(tensors) and meta.get("facts") == dict(facts):
                return Entry(tensors, meta["notes"])
        info(f"{path} is damaged; computing it again")
        return None

    def write(self, facts: Mapping[str, object], entry: Entry) -> None:
        """Write the entry of these facts."""
        meta = {"facts": dict(facts), "notes": entry.notes, "digest": state_digest(entry.tensors)}
        write_bytes(self.path(facts), tensors_to_bytes(entry.tensors, meta))
