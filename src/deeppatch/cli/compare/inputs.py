"""The inputs of compare: the networks that stages left or that files hold, all made from the same base weights."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from deeppatch.cache import ContentCache
from deeppatch.cli.compare.calling import by_name
from deeppatch.cli.compare.loading import PRETRAINED, SWITCHED, Member, load_member
from deeppatch.cli.compare.sources import Source, given, left_by_stages
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.data import corruption_names
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.requirements import check_names, known_names, requirement
from deeppatch.ledger.streams import group_of, kinds_and_severities
from deeppatch.patching.seen import apart
from deeppatch.progress import info


def cells(options: Any) -> ContentCache:
    """Return the cache of what networks answered, in cells/ next to the folders of the stages."""
    return ContentCache(model_folder(options) / "cells")


def members(context: Context, called: str, model: nn.Module) -> dict[str, Member]:
    """Return the networks to compare with the base, by name: those that are given, else all that the stages left.

    What a stage left is left out, which is logged with the reason, where it was made from other weights or images.

    Raises:
        UserError: When there is none, or a file that was given holds none.
    """
    options = context.options
    found, left_out = [], []
    sources = list(given(options)) or [(each, False) for each in left_by_stages(options.output_dir, options)]
    for source, required in sources:
        try:
            found.append(load_member(context, model, source))
        except UserError as error:
            if required:
                raise
            left_out.append(f"{source.called} ({error})")
    if left_out:
        info(f"left out: {'; '.join(left_out)}")
    if not found:
        command = context.command("correct", fs_method="perfloss", crt_method="finetune")
        raise UserError(f"nothing to compare under {model_folder(options)}; make a network with: {command}")
    for member in found:
        info(f"inherited {member.source.path} ({member.name})")
    return by_name(found, called)


def target(context: Context, names: list[str]) -> str | None:
    """Return the network that requirements and verdict are about; UserError where --gate names none, or must."""
    options = context.options
    if options.gate is not None:
        if options.gate not in names:
            raise UserError(f"--gate {options.gate}: there are the networks {', '.join(names)}")
        return str(options.gate)
    if SWITCHED in names:
        return SWITCHED
    if len(names) == 1:
        return names[0]
    if options.require:
        raise UserError(f"--require: choose the network that must meet it with --gate: {', '.join(names)}")
    return None


def calibration_images(context: Context, found: Mapping[str, Member]) -> np.ndarray:
    """Return the numbers of the test images that routers were calibrated on, which evaluate drew by its seed."""
    total, numbers = len(context.data.test), [np.zeros(0, dtype=np.int64)]
    everything = Images(torch.zeros(total, 0), torch.arange(total))  # whose labels are the numbers
    for member in found.values():
        if count := member.source.calibrated_on_test:
            seed = (member.source.record or {})["settings"]["seed"]
            numbers.append(apart(everything, count, seed)[0].labels.numpy())
    return np.unique(np.concatenate(numbers))


def check_requirements(context: Context) -> None:
    """Raise UserError where a requirement names a view that there is not, now that the levels are known."""
    options = context.options
    whole = corruption_names.parse(options.noise_type, options.severity)
    found = known_names(whole, held_out=options.hold_out is not None)
    for each in (context.corruption, context.held_out):
        for _name, kind, severity in kinds_and_severities(() if each is None else each.level_names):
            found[kind] = (*found.get(kind, ()), severity)
            found |= {group_of(kind): found.get(group_of(kind), ())}
    check_names([requirement(text) for text in options.require], found)


def described(context: Context, ledger: Ledger, found: Mapping[str, Member]) -> Ledger:
    """Return a ledger with what is known of each network, and of the run."""
    rows = dict(ledger.networks)
    base = context.found["base"]
    facts = Source(base.path, base.record, context.options.output_dir).facts(base.digest)
    one_file = ledger.base == PRETRAINED  # not models together
    rows[ledger.base] = replace(rows[ledger.base], method=ledger.base, facts=facts if one_file else {})
    for name, member in found.items():
        settings = (member.source.record or {}).get("settings", {})
        passes = member.facts.get("passes", {}).get("train")
        rows[name] = replace(
            rows[name],
            method=member.method,
            seed=settings.get("seed"),
            bytes=member.bytes,
            passes=passes,
            facts=member.facts,
        )
    run = context.stage.facts
    # how many processes computed it changes nothing, and stands in run.json
    left_out = ("stage", "settings", "defaults", "consumed", "data", "ranks")
    known = {name: run[name] for name in run if name not in left_out}
    about = {
        "dataset": context.source.name,
        "model": context.options.model,
        "degradations": context.options.noise_type,
        "hold_out": context.options.hold_out,
        "limit": context.options.limit,
        "seed": context.options.seed,
        **known,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return dataclasses.replace(ledger, networks=rows, about=about)
