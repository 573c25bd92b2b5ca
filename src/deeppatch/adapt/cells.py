"""Answers on streams with a cache of every row and stream, so that a second run measures what is new."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from deeppatch import runtime
from deeppatch.adapt import adapter, names
from deeppatch.adapt.batch_statistics import BnPriorSettings, choose_prior_count
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.methods import METHODS
from deeppatch.adapt.results import Answers, StreamResults
from deeppatch.cache import ContentCache, Entry, content_key
from deeppatch.data import corruptions, digest
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.streams import DegradedStream, choose_images, stream
from deeppatch.data.views import levels_view
from deeppatch.distributed import ranks
from deeppatch.errors import UserError
from deeppatch.ledger.identity import network_digest
from deeppatch.ledger.streams import level_content
from deeppatch.storage import sha256
from deeppatch.zoo.classifier import device_of

Key = tuple[str, str]  # row and stream


def cached_streams(
    model: nn.Module,
    data: Data,
    corruption: Any,
    cells: ContentCache,
    *,
    methods: Sequence[str] = names.METHODS,
    streams: Sequence[str] = names.STREAMS,
    networks: Mapping[str, nn.Module] | None = None,
    settings: Mapping[str, Any] | None = None,
    reference: str | None = None,
    per_corruption: int = 200,
    single: int = 20,
    batch_size: int = 200,
    seed: int = 2021,
) -> StreamResults:
    """Do what `run_streams` does for all levels, and keep the answers of each row on each stream in a cache.

    The answers of a stream are written when it is finished, so that a run that was killed has lost one stream at most.
    Ranks share the streams, and every rank returns all answers.

    Args:
        model: As for `run_streams`, as are the data, the corruption and all options.
        data: The data.
        corruption: The degradation.
        cells: Where answers are kept, each by what it depends on: the network, the method with its code and settings,
            the images and their order.
        methods: The methods.
        streams: The streams.
        networks: Fixed classifiers by name.
        settings: Settings by method.
        reference: The row that the others are compared with (default: the first network, else the first method).
        per_corruption: The number of images at each level.
        single: The number of images at each level of the stream `single`.
        batch_size: The number of images in a batch.
        seed: The seed of images, orders and augmentations.

    Raises:
        UserError: As `run_streams`.
    """
    fixed, degrade = dict(networks or {}), corruptions.corruption(corruption, seed=seed)
    if twice := sorted(fixed.keys() & set(methods)):
        raise UserError(f"{', '.join(twice)}: networks have other names than methods; rename one")
    image = choose_images(data.test, per_corruption, seed)
    images = data.test.take(image.to(data.test.labels.device))
    rows = _row_facts(model, fixed, methods, settings or {}, data)
    orders = {
        name: _stream_facts(stream(name, images, degrade, single=single, batch_size=batch_size, seed=seed), seed)
        for name in streams
    }
    shown = _shown(images, degrade, batch_size)

    def facts(key: Key) -> dict[str, object]:
        row, name = key
        return {"adaptation": rows[row], "stream": orders[name], **shown, "device": device_of(model).type}

    def known() -> dict[Key, Answers]:
        found = {key: cells.read(facts(key)) for key in wanted}
        return {key: _answers(key, entry) for key, entry in found.items() if entry is not None}

    wanted = [(row, name) for name in streams for row in rows]
    found = ranks.broadcast_from_rank0(known)
    lacking = [(name, [row for row in rows if (row, name) not in found]) for name in streams]
    own: dict[Key, Answers] = {}
    for name, new in [each for each in lacking if each[1]][runtime.rank() :: runtime.ranks()]:
        chosen = [method for method in methods if method in new]
        measured = run_streams(
            model,
            data,
            degrade,
            methods=chosen,
            streams=[name],
            networks={row: fixed[row] for row in new if row in fixed},
            settings={method: value for method, value in (settings or {}).items() if method in chosen},
            per_corruption=per_corruption,
            single=single,
            batch_size=batch_size,
            seed=seed,
        )
        for key, answers in measured.answers.items():
            own[key] = answers
            cells.write(facts(key), _entry(answers))
    for part in ranks.all_gather(own):
        found |= part
    return StreamResults(
        answers={key: found[key] for key in wanted},
        reference=next(iter(rows)) if reference is None else reference,
        levels=tuple(degrade.level_names),
        image=image.numpy(),
        single_image=image[choose_images(images, single, seed)].numpy(),
    )


def cached_prior_count(
    model: nn.Module, val: Images, corruption: Corruption, cells: ContentCache, *, batch_size: int, seed: int
) -> BnPriorSettings:
    """Return settings of `bn-prior` with the prior count that `choose_prior_count` finds on val, kept in a cache."""
    facts = {
        "prior count": network_digest(model),
        **_shown(val, corruption, batch_size),
        "batch_size": batch_size,
        "seed": seed,
        "device": device_of(model).type,
    }

    def chosen() -> int:
        if (entry := cells.read(facts)) is not None:
            return int(entry.notes["count"])
        count = choose_prior_count(model, val, corruption, batch_size=batch_size, seed=seed)
        cells.write(facts, Entry({"count": torch.tensor(count)}, {"count": count}))
        return count

    return BnPriorSettings(ranks.broadcast_from_rank0(chosen))


def _row_facts(
    model: nn.Module, fixed: Mapping[str, nn.Module], methods: Sequence[str], settings: Mapping[str, Any], data: Data
) -> dict[str, dict[str, object]]:
    """Return what the answers of each row depend on beside the stream."""
    found: dict[str, dict[str, object]] = {name: {"network": network_digest(each)} for name, each in fixed.items()}
    base = network_digest(model)
    for name in methods:
        method = METHODS[name]
        chosen = json.loads(json.dumps(asdict(settings.get(name, method.settings()))))  # without tuples, as it is kept
        found[name] = {"network": base, "method": name, "settings": chosen, "code": _code(method.build)}
        if method.reads_source:
            found[name]["source"] = _digest(data.train)
    return found


def _stream_facts(each: DegradedStream, seed: int) -> dict[str, object]:
    """Return what the order of a stream is."""
    order = [(part.index.tolist(), part.levels.tolist(), part.batch_size) for part in each.parts]
    return {"name": each.name, "order": content_key({"parts": order}), "resets": each.resets, "seed": seed}


def _shown(images: Images, degrade: Corruption, batch_size: int) -> dict[str, object]:
    """Return what the images and their degraded versions are."""
    levels = [
        level_content(levels_view(images, degrade, [level], batch_size), degrade, level)
        for level in range(1, len(degrade) + 1)
    ]
    return {"images": _digest(images), "degraded": levels}


def _digest(images: Images) -> str:
    return str(digest.describe({"test": images}, ())["parts"]["test"]["digest"])


def _code(method: Any) -> str:
    """Return a digest of the modules that hold a method and what all methods share."""
    with contextlib.suppress(OSError, TypeError):
        modules = [inspect.getmodule(each) for each in method.__mro__ if each.__module__.startswith("deeppatch.")]
        return sha256("".join(inspect.getsource(module) for module in [adapter, *modules] if module).encode())
    return ""


def _entry(answers: Answers) -> Entry:
    defined = answers.correct is not None
    notes = {name: value for name, value in vars(answers).items() if name not in ("method", "stream", "correct")}
    correct = torch.from_numpy(answers.correct) if answers.correct is not None else torch.zeros(1, dtype=torch.bool)
    return Entry({"correct": correct}, {**notes, "defined": defined})


def _answers(key: Key, entry: Entry) -> Answers:
    notes = {name: value for name, value in entry.notes.items() if name != "defined"}
    return Answers(*key, entry.tensors["correct"].numpy() if entry.notes["defined"] else None, **notes)
