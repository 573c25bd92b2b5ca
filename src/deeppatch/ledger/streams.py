"""The views of a ledger: which images each shows, what they are called, and a digest of what they depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deeppatch.cache import content_key
from deeppatch.data import digest, views
from deeppatch.data.corruption_names import GROUPS
from deeppatch.data.corruptions import Corruption, Several, depends_on_batch, looks_up, own_images
from deeppatch.data.corruptions.named import IDENTIFYING_IMAGES
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.ledger.records import CLEAN, MIXED, LedgerView
from deeppatch.storage import sha256

GAUSSION = "gaussion"
# names of means over views, which no type of one's own may have
TAKEN = {*GROUPS, "all", "blurred", "degraded", "held out", "flips", "bytes", CLEAN, MIXED}
GROUP_OF = {name: group for group, members in GROUPS.items() for name in members}


@dataclass(frozen=True)
class Stream:
    """A column of a ledger, and the batches of its images."""

    view: LedgerView
    batches: views.View


def ledger_streams(
    images: Images,
    corruption: Corruption | None = None,
    held_out: Corruption | None = None,
    *,
    batch_size: int = 256,
    seed: int = 2021,
    images_digest: str | None = None,
) -> list[Stream]:
    """Return the views of a ledger: clean, each level, each held-out level, and the mixed stream.

    Args:
        images: The test images.
        corruption: The degradations; without them there are only clean images.
        held_out: Degradations that nothing was trained or calibrated on; they are not in the mixed stream.
        batch_size: The number of images in a batch.
        seed: The seed of the mixed stream.
        images_digest: A digest of pixels and labels (default: it is computed).

    Raises:
        UserError: When a held-out level has the name of another one.
    """
    known = images_digest or digest.describe({"test": images}, ())["parts"]["test"]["digest"]
    clean = views.clean(images, batch_size)
    found = [Stream(_view(clean, CLEAN, CLEAN, 0, {"images": known}), clean)]
    seen: set[str] = set()
    first = len(images)
    for apart, degrade in ((False, corruption), (True, held_out)):
        names = () if degrade is None else degrade.level_names
        if twice := sorted(seen & set(names)):
            raise UserError(f"{', '.join(twice[:4])}: held out and not; give each degradation once, or another name")
        seen |= set(names)
        for level, (name, kind, severity) in enumerate(kinds_and_severities(names), start=1):
            assert degrade is not None
            batches = views.levels_view(images, degrade, [level], batch_size)
            facts = {"images": known, "level": name, "degraded": level_content(batches, degrade, level)}
            view = _view(batches, name, kind, severity, facts, held_out=apart)
            if (own := own_images(degrade, level, images)) is not None:  # other images than those of test
                numbers = np.arange(first, first + len(own))
                view = LedgerView(**{**vars(view), "image": numbers})
                first += len(own)
            found.append(Stream(view, batches))
    if corruption is not None:
        mixed = views.mixed_stream(images, corruption, batch_size, seed)
        levels = [stream.view.digest for stream in found if not stream.view.held_out]
        order = {"seed": seed, "order": _digest(mixed.index), "levels": _digest(mixed.levels)}
        batch = {"batch_size": batch_size} if depends_on_batch(corruption) else {}
        found.append(Stream(_view(mixed, MIXED, MIXED, 0, {"views": levels, **order, **batch}), mixed))
    return found


def kinds_and_severities(level_names: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield name, type and severity of each level; the levels of the published blur are numbered from 1.

    >>> list(kinds_and_severities(["s=0.5", "s=1", "fog-3", "rain"]))
    [('s=0.5', 'gaussion', 1), ('s=1', 'gaussion', 2), ('fog-3', 'fog', 3), ('rain', 'rain', 1)]
    """
    blurred = 0
    for name in level_names:
        stem, dash, end = name.rpartition("-")
        if name.startswith("s=") or (stem == GAUSSION and end.startswith("s=")):
            blurred += 1
            yield name, GAUSSION, blurred
        elif dash and end.isdecimal() and (stem in GROUP_OF or stem == "spatial"):
            yield name, stem, int(end)
        else:
            yield name, f"own {name}" if name in TAKEN else name, 1


def group_of(kind: str) -> str:
    """Return the group of a type; the type itself where it is in none, and nothing for clean and mixed.

    >>> group_of("fog"), group_of("gaussion"), group_of("clean")
    ('weather', 'gaussion', '')
    """
    return "" if kind in (CLEAN, MIXED) else GROUP_OF.get(kind, kind)


def _view(
    batches: views.View, name: str, kind: str, severity: int, facts: Mapping[str, object], *, held_out: bool = False
) -> LedgerView:
    labels, image = (each.cpu().numpy() for each in (batches.labels, batches.index))
    return LedgerView(name, kind, severity, group_of(kind), held_out, labels, image, content_key(facts))


def level_content(batches: views.View, corruption: Corruption, level: int) -> str:
    """Return a digest of degraded pixels, rounded to 8 bits: all that come from files, else the first of them.

    What is computed depends on code and constants, which the first images show.
    """
    member, _level = _member(corruption, level)
    digests = [f"batches of {batches.batch_size}"] if depends_on_batch(member) else []
    read = 0
    for pixels, _labels in batches:
        part = pixels if looks_up(member) else pixels[:IDENTIFYING_IMAGES]
        digests.append(_digest((part * 255).round().to(torch.uint8)))
        read += len(part)
        if read >= IDENTIFYING_IMAGES and not looks_up(member):
            break
    return sha256(json.dumps(digests).encode())


def _member(corruption: Corruption, level: int) -> tuple[Corruption, int]:
    """Return the corruption that has a level, and the level's number there."""
    for member in corruption.members if isinstance(corruption, Several) else ():
        if level <= len(member):
            return _member(member, level)
        level -= len(member)
    return corruption, level


def _digest(values: Tensor) -> str:
    return sha256(values.cpu().contiguous().numpy().tobytes())
