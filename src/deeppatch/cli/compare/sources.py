"""Where compare finds networks: what the command line names, else what the stages left in an output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deeppatch.cli.naming import model_folder
from deeppatch.errors import UserError
from deeppatch.storage import read_given, read_record, sha256

# the file of each stage that holds a network or a part of one, first what is preferred
FILES = {
    "correct": ("weights.safetensors", "patch.safetensors", "bank.safetensors"), "evaluate": ("router.safetensors",),
    "relearn": ("weights.safetensors",), "decompose": ("weights.safetensors",), "compose": ("assembled.safetensors",),
}  # fmt: skip


# settings in which runs of one method may differ whose mean is reported
NO_VARIANT = {"seed", "filter_seed", "device", "gpu", "mem"}


@dataclass(frozen=True)
class Source:
    """A file that holds a network, the record of its run where it has one, and the output folder that it lies in."""

    path: Path
    record: Mapping[str, Any] | None
    output: Path
    prefix: str = ""

    @property
    def called(self) -> str:
        """What messages call it: the folder of its run, or the file."""
        return self.path.parent.name if self.record else str(self.path)

    @property
    def calibrated_on_test(self) -> int:
        """The number of test images that a router was calibrated on, which say nothing about it."""
        kind, _, count = str((self.record or {}).get("settings", {}).get("calibrate_on", "")).partition(":")
        return int(count) if kind == "test" and count.isdecimal() else 0

    @property
    def variant(self) -> str | None:
        """A digest of all settings of the run and of what it has read, without seeds; None for a file by itself."""
        record = self.record or {}
        if "settings" not in record:
            return None
        return sha256(json.dumps(_without_seeds(record), sort_keys=True).encode())[:12]

    def facts(self, digest: str) -> dict[str, Any]:
        """Return what a ledger says of the file: where it is, its digest, and the command that made it."""
        record = self.record or {}
        kept = {name: record[name] for name in ("stage", "command", "git") if name in record}
        inside = self.path.resolve().is_relative_to(self.output.resolve())
        file = self.path.resolve().relative_to(self.output.resolve()) if inside else self.path
        if self.variant is not None:
            kept["variant"] = self.variant
        if (filter_seed := record.get("settings", {}).get("filter_seed")) is not None:
            kept["filter_seed"] = filter_seed
        return {"file": str(file), "sha256": digest, **kept}


def _without_seeds(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, and of the runs that it has read, without seeds and devices."""
    settings = {name: value for name, value in record.get("settings", {}).items() if name not in NO_VARIANT}
    read = {role: _without_seeds(each) for role, each in record.get("consumed", {}).items()}
    return {"settings": settings, "consumed": read}


def given(options: Any) -> Iterator[tuple[Source, bool]]:
    """Yield what the command line names, with whether it must be a network."""
    for path in [*options.files, *options.networks]:
        if path.is_file():
            record = read_record(path.parent)
            known = record is not None and record["outputs"].get(path.name) == sha256(read_given(path))
            yield Source(path, record if known else None, root(path.parent)), True
            continue
        record = read_record(path) or {}
        files = [name for name in FILES.get(str(record.get("stage")), ()) if name in record["outputs"]]
        roots = [] if record else list(left_by_stages(path, options, prefix=f"{path.name}: "))
        if not files and not roots:
            raise UserError(
                f"{path} holds no network of {options.model} on {options.dataset}; give a file, a folder that correct, "
                "evaluate, relearn or decompose left, or an output folder"
            )
        yield from ((Source(path / name, record, root(path)), True) for name in files[:1])
        yield from ((source, False) for source in roots)


def left_by_stages(output: Path, options: Any, prefix: str = "") -> Iterator[Source]:
    """Yield the networks that stages left in an output folder for a model and a data set."""
    folder = model_folder(replace(options, output_dir=output))
    runs = [
        (path, read_record(path))
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.is_dir() and not path.name.startswith(".")
    ]
    for stage, names in FILES.items():
        for path, record in runs:
            there = [name for name in names if record and record.get("stage") == stage and name in record["outputs"]]
            yield from (Source(path / name, record, output, prefix) for name in there[:1])


def root(folder: Path) -> Path:
    """Return the output folder that a run's folder, OUTPUT/DATASET/MODEL/RUN, lies in."""
    return folder.resolve().parent.parent.parent
