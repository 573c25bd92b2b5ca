"""Tensors as files: digests, safetensors with metadata, and checkpoints of unfinished runs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from deeppatch.errors import StaleArtifact
from deeppatch.progress import info
from deeppatch.stage import Stopwatch
from deeppatch.storage import is_of, parse_json, write_bytes

# what torch and safetensors raise for files that they cannot read
DAMAGE = (
    safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError,
    TypeError, AttributeError, AssertionError, struct.error, OSError,
)  # fmt: skip


def state_digest(state: dict[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and values of a state dict; independent of device and layout."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_to_bytes(tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> bytes:
    """Serialise tensors as safetensors, with `meta` as JSON under one metadata key so that bytes are reproducible."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save_safetensors(plain, {"deeppatch": json.dumps(meta or {}, sort_keys=True)})


def tensors_from_bytes(content: bytes, origin: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and metadata that `tensors_to_bytes` has serialised; StaleArtifact when they are damaged."""
    try:
        tensors = load_safetensors(content)
        length = int.from_bytes(content[:8], "little")
        meta = parse_json(parse_json(content[8 : 8 + length]).get("__metadata__", {}).get("deeppatch", "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise StaleArtifact(
            f"{origin} is damaged, or is not a safetensors file; give another one, or make it again"
        ) from error
    check_meta(meta, origin)
    return tensors, meta


def check_meta(meta: Any, origin: Path) -> None:
    """Raise StaleArtifact unless the metadata of a file is an object whose known values are of their types."""
    known = {
        "base": str,
        "kind": str,
        "router": str,
        "image_size": [int],
        "order": str,
        "about": {str: object},
        "bank": [str],
        "assembled": [{str: object}],
    }
    fits = isinstance(meta, dict) and all(is_of(meta[name], kind) for name, kind in known.items() if name in meta)
    fits = fits and (is_of(meta.get("classes", []), [str]) or is_of(meta["classes"], int))  # names, or their number
    if not fits or len(meta.get("image_size", (1, 1))) != 2 or min(meta.get("image_size", (1,))) < 1:
        raise StaleArtifact(
            f"{origin}: its metadata is not of this version's form; give another file, or make it again"
        )
    if "about" in meta:
        check_meta(meta["about"], origin)


class Checkpoint:
    """The state of an unfinished run, replaced atomically at each step and removed when the run is finished.

    `settings` must not change between interruption and resumption. `writes` is False when another process
    writes for this one. `watch` is the time of the run, which goes on, too.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        resume: bool,
        *,
        writes: bool = True,
        watch: Stopwatch | None = None,
    ) -> None:
        self.path = path
        self.settings = json.dumps(settings, sort_keys=True)
        self.resume, self.writes, self.watch = resume, writes, watch
        if not resume:
            self.remove()

    def with_settings(self, **settings: Any) -> Checkpoint:
        """Return the same checkpoint with further settings that must not change."""
        same = copy.copy(self)
        same.settings = json.dumps({**json.loads(self.settings), **settings}, sort_keys=True)
        return same

    def beside(self, name: str) -> Checkpoint:
        """Return the checkpoint of another part of the same run, with the same settings, in a file beside this one."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return Checkpoint(path, json.loads(self.settings), self.resume, writes=self.writes, watch=self.watch)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        time = self.watch.state() if self.watch else None
        saved = {"settings": self.settings, "state": state, "threads": torch.get_num_threads(), "time": time}
        torch.save(saved, buffer)
        content = buffer.getvalue()
        write_bytes(self.path, hashlib.sha256(content).digest() + content)

    def load(self, **kinds: Any) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none; StaleArtifact when it belongs to other settings.

        `kinds` are those of its values, as `storage.is_of` takes them; another kind is damage.
        """
        if not self.path.exists():
            return None
        digest, content = (whole := self.path.read_bytes())[:32], whole[32:]
        if hashlib.sha256(content).digest() != digest:
            raise StaleArtifact(f"{self.path} is damaged; delete it and run without -r")
        with self.undamaged():
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            before, now, state = parse_json(saved["settings"]), json.loads(self.settings), dict(saved["state"])
            before.keys()
            if not all(is_of(state.get(name), kind) for name, kind in kinds.items()):
                raise ValueError("values of other kinds")
        if saved["settings"] != self.settings:
            changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k, "absent") != now.get(k, "absent")]
            raise StaleArtifact(
                f"{self.path} was left by a run with other settings ({', '.join(changed)}); "
                "repeat those, or run without -r to start anew"
            )
        if (threads := saved.get("threads")) not in (None, now_threads := torch.get_num_threads()):
            info(f"this run began with {threads} threads and goes on with {now_threads}: bytes will differ by rounding")
        if self.watch:
            self.watch.go_on(saved.get("time"))
        return state

    @contextmanager
    def undamaged(self) -> Iterator[None]:
        """Raise StaleArtifact where the block fails at what the file holds, as it does where that is not a state."""
        try:
            yield
        except DAMAGE as error:
            raise StaleArtifact(f"{self.path} is damaged; delete it and run without -r") from error

    def remove(self) -> None:
        """Delete the checkpoint."""
        if self.writes:
            self.path.unlink(missing_ok=True)


def saved_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings of the run that left a checkpoint, or None where the file is damaged."""
    with contextlib.suppress(*DAMAGE):
        saved = torch.load(io.BytesIO(path.read_bytes()[32:]), map_location="cpu", weights_only=True)
        return dict(parse_json(saved["settings"]))
    return None


class Stateful(Protocol):
    """What a training carries from epoch to epoch beside the model, as optimizers and schedules are."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in a form that `torch.load(weights_only=True)` can load."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take the state that `state_dict` returned; its tensors are on the CPU."""


def states_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the states of parts of a training, without functions, which schedules have and checkpoints do not."""
    states = {name: part.state_dict().items() for name, part in parts.items()}
    return {name: {key: value for key, value in state if not callable(value)} for name, state in states.items()}


def load_states(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Let each part take its state, what `states_of` returned."""
    for name, part in parts.items():
        part.load_state_dict(states[name])
