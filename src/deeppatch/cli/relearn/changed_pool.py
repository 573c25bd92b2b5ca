"""A selection whose pool has changed since: its images are found again by name, and no label is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deeppatch.data.pool import Pool
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import UNKNOWN, Selection
from deeppatch.progress import info
from deeppatch.storage import is_of

MOST_LISTED = 4


def pool_of_selection(selection: Selection, pool: Pool, path: Path, command: str) -> list[list[str]]:
    """Return the name and a hash of each image of the pool that a selection chose from.

    StaleArtifact where that was another pool and the selection does not name its images: one of a simulated pool, which
    `command` makes again, or of an earlier version.
    """
    if selection.facts["pool_digest"] == pool.digest:
        return [[name, ""] for name in pool.names]
    if pool.folder is None:
        raise StaleArtifact(f"{path} chose from another pool; make it again with: {command}")
    files: Any = selection.facts.get("files")
    if not is_of(files, [[str]]) or {len(each) for each in files} != {2} or len(files) != selection.facts.get("pool"):
        raise StaleArtifact(
            f"{path} chose from another pool, and does not say which files it had; put {pool.folder} back as it was, "
            "so that labels that were given count, or choose anew: annotate keeps this choice under another name"
        )
    return list(files)


def in_present_pool(selection: Selection, before: Sequence[Sequence[str]], pool: Pool, *, needed: bool) -> Selection:
    """Return a selection with the indices that its images have in the pool as it is now.

    Args:
        selection: The selection, whose labels have been read, without the images that were skipped.
        before: The name and a hash of each image of the pool that it chose from.
        pool: The pool as it is now.
        needed: Whether every image that was chosen must still be there, as it was.
    """
    now = {name: (place, content) for place, (name, content) in enumerate(pool.files)}
    places = [now[name][0] if now.get(name, (0, ""))[1] == content else UNKNOWN for name, content in before]
    lost: dict[str, list[str]] = {"gone": [], "left out by --limit": [], "changed": []}
    for (name, _content), place in zip(before, places, strict=True):
        if place == UNKNOWN:
            there = pool.folder is not None and (pool.folder / name).exists()
            lost["changed" if name in now else "left out by --limit" if there else "gone"].append(name)
    new = sorted(now.keys() - {name for name, _content in before})
    chosen = {before[index][0] for index in selection.bought.tolist()}
    missed = _listed({what: [name for name in names if name in chosen] for what, names in lost.items()})
    if needed and missed:
        raise UserError(
            f"of the images that were chosen in {pool.folder}, {missed}: put back what it was, or write (skipped) as "
            "the label; annotate need not be run again"
        )
    told = _listed({**lost, "new": new})
    info(f"{pool.folder} is not as it was when annotate chose: {told}; images are found by name, and labels count")
    moved = selection.moved(torch.tensor(places))
    return replace(moved, facts={**selection.facts, "pool": len(pool), "pool_digest": pool.digest})


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for what, names in groups.items():
        more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        parts += [f"{len(names)} {what} ({', '.join(names[:MOST_LISTED])}{more})"] * bool(names)
    return ", ".join(parts)
