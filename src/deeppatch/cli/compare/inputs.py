"""The inputs of compare: the networks that stages left or that files hold, all made from the same base weights."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cache import ContentCache
from deeppatch.cli.compare.sources import Source, given, left_by_stages
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.cli.predecessors import check_classes, patched_copy, restore
from deeppatch.data import corruption_names, digest
from deeppatch.decomposition.head import DecomposedHead, with_head
from deeppatch.errors import OtherBase, StaleArtifact, UserError
from deeppatch.features import last_linear
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.requirements import check_names, known_names, requirement
from deeppatch.ledger.streams import group_of, kinds_and_severities
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info
from deeppatch.saving import ROUTER, load
from deeppatch.storage import read_given, sha256
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier

PRETRAINED, FINETUNED, ALWAYS, SWITCHED, DECOMPOSED = (
    "pretrained", "finetuned", "patched always on", "switched", "decomposed",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network to compare, and what its row of the ledger says of it."""

    network: nn.Module
    name: str
    method: str
    source: Source
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


def cells(options: Any) -> ContentCache:
    """Return the cache of what networks answered, in cells/ next to the folders of the stages."""
    return ContentCache(model_folder(options) / "cells")


def members(context: Context, model: Classifier) -> dict[str, Member]:
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
            found.append(_member(context, model, source))
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
    return _named(found)


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
    for member in found.values():
        if count := member.source.calibrated_on_test:
            seed = (member.source.record or {})["settings"]["seed"]
            order = torch.randperm(total, generator=runtime.generator(seed, "calibrate"))
            numbers.append(order[:count].numpy())
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
    rows[PRETRAINED] = replace(rows[PRETRAINED], method=PRETRAINED, facts=facts)
    for name, member in found.items():
        settings = (member.source.record or {}).get("settings", {})
        passes = member.facts.get("passes", {}).get("train")
        rows[name] = replace(
            rows[name], method=member.method, seed=settings.get("seed"), bytes=member.bytes, passes=passes,
            facts=member.facts,
        )  # fmt: skip
    run = context.stage.facts
    known = {name: run[name] for name in run if name not in ("stage", "settings", "defaults", "consumed", "data")}
    about = {
        "dataset": context.source.name, "model": context.options.model, "degradations": context.options.noise_type,
        "hold_out": context.options.hold_out, "limit": context.options.limit, "seed": context.options.seed,
        **known, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    return dataclasses.replace(ledger, networks=rows, about=about)


def _member(context: Context, model: Classifier, source: Source) -> Member:
    _check_data(context, source)
    content = _content(context, source)
    tensors, meta = tensors_from_bytes(content, source.path) if source.path.suffix == ".safetensors" else ({}, {})
    sizes = {source.path.name: len(content)}
    if any(name.startswith(ROUTER) for name in tensors):
        name, network = SWITCHED, load(source.path, model)
    elif "router" in meta:
        name, network = SWITCHED, _switched(context, model, source, Router.from_bytes(content, source.path), sizes)
    elif "bank" in meta:
        _check_base(meta["base"], model, source)
        name, network = "bank", load(source.path).apply(model)
    elif {"kind", "base"} <= meta.keys():
        name, network = ALWAYS, patched_copy(context, model, _patch(context, model, content, source))
    else:
        name, network = _whole_name(source), _whole(context, model, source, tensors, meta)
    metrics = _metrics(source)
    facts = {**source.facts(sha256(content)), **{key: metrics[key] for key in ("passes",) if key in metrics}}
    method = {FINETUNED: "finetune", ALWAYS: "patch", DECOMPOSED: "decompose"}.get(name, name)
    size = int(metrics.get("stored_bytes", sum(sizes.values())))
    return Member(context.place(network), name, method, source, size, facts)


def _content(context: Context, source: Source) -> bytes:
    """Return a file's content; what a stage left must be as it left it.

    What else its run has read may have changed since: that the weights are the base's is checked by content.
    """
    command = str((source.record or {}).get("command", "its stage"))
    content = read_given(source.path)
    if source.record and sha256(content) != source.record["outputs"][source.path.name]:
        raise StaleArtifact(f"{source.path} is damaged or was changed by hand; make it again with: {command}")
    context.stage.inherit(source.path, content)
    return content


def _check_data(context: Context, source: Source) -> None:
    """Raise StaleArtifact where a run has read other test images or classes; subsets of another size are no others."""
    record = source.record or {}
    _parts = context.splits
    before, now = record.get("data"), context.stage.facts["data"]
    if not before:
        return
    same = record.get("settings", {}).get("limit") == context.options.limit
    if source.calibrated_on_test and not same:
        raise StaleArtifact(f"calibrated on {source.calibrated_on_test} test images, of another subset than --limit's")
    test = {name: part for name, part in before["parts"].items() if name == "test" and same}
    if changes := "; ".join(digest.differences({**before, "parts": test}, now)):
        raise StaleArtifact(f"made from other data: {changes}")


def _patch(context: Context, model: Classifier, content: bytes, source: Source) -> Patch:
    patch = Patch.from_bytes(content, source.path)
    check_classes(context, patch.about, source.path)
    _check_base(patch.base, model, source)
    return patch


def _check_base(base: str | None, model: Classifier, source: Source) -> None:
    if base is not None and base != state_digest(model.state_dict()):
        raise OtherBase(source.path, str((source.record or {}).get("command", "correct")))


def _switched(
    context: Context, model: Classifier, source: Source, router: Router, sizes: dict[str, int]
) -> SwitchedModel:
    """Return the model that routes with the patch that its router was fitted for."""
    read = (source.record or {}).get("consumed", {}).get("patch")
    if read is None:
        raise UserError(f"{source.path} does not say which patch it is for; give the folder that evaluate left")
    path = source.output / read["file"]
    content = read_given(path)
    if sha256(content) != read["sha256"]:
        raise StaleArtifact(f"{source.path} was fitted for another {path}; run evaluate again")
    context.stage.inherit(path, content)
    sizes[path.name] = len(content)
    patch = _patch(context, model, content, replace(source, path=path))
    example = context.example.to(context.device)
    switched = SwitchedModel(model, patch, example, router.to(context.device))
    switched.vote = (source.record or {}).get("settings", {}).get("switch") == "batch"
    return switched


def _whole(
    context: Context, model: Classifier, source: Source, tensors: dict[str, Tensor], meta: Mapping[str, Any]
) -> nn.Module:
    """Return a whole network; of one that says from which weights it was made, these must be the base's."""
    record = source.record or {}
    check_classes(context, meta, source.path)
    _check_base(meta.get("base"), model, source)
    base = context.found["base"].digest
    if record and not meta.get("base") and base not in record["inputs"].values():
        raise OtherBase(source.path, str(record.get("command")))
    if record.get("stage") == "decompose":
        layer, _whole_head = last_linear(model, context.example.to(context.device))
        head = DecomposedHead(*(tensors[f"{layer}.{part}"] for part in ("indices", "weight", "bias")))
        network = with_head(copy.deepcopy(model), layer, head)
        network.load_state_dict(tensors)
        return network
    return restore(context, tensors or weights.read(source.path, context.new_network), source.path)


def _whole_name(source: Source) -> str:
    record = source.record or {}
    settings = record.get("settings", {})
    if record.get("stage") == "relearn":
        return f"relearned ({settings.get('method')})"
    if record.get("stage") == "decompose":
        return DECOMPOSED
    method = settings.get("crt_method") or (source.path.stem if record else source.path.parent.name)
    return FINETUNED if method == "finetune" else str(method)


def _metrics(source: Source) -> dict[str, Any]:
    path = source.path.with_name("metrics.json")
    return dict(json.loads(path.read_bytes())) if source.record and path.is_file() else {}


def _named(found: list[Member]) -> dict[str, Member]:
    """Return networks by name; where several would have one, the folders of their runs tell them apart."""
    plain = [member.source.prefix + member.name for member in found]
    runs = [re.sub("^(correct|switch|relearn|decompose)-", "", member.source.called) for member in found]
    short = [re.sub("-[0-9a-f]{6}$", "", run) for run in runs]
    named: dict[str, Member] = {}
    for member, *choices in zip(
        found, plain, _in_brackets(plain, short), _in_brackets(plain, runs), strict=True
    ):  # fmt: skip
        every = (plain, _in_brackets(plain, short), _in_brackets(plain, runs))
        unique = [name for name, others in zip(choices, every, strict=True) if others.count(name) == 1]
        name = unique[0] if unique and unique[0] != PRETRAINED else f"{choices[-1]} {len(named) + 1}"
        named[name] = member
    return named


def _in_brackets(names: list[str], runs: list[str]) -> list[str]:
    return [f"{name} ({run})" for name, run in zip(names, runs, strict=True)]
