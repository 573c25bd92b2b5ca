"""Load a network that compare has found: a whole one, a bank, a patch, or a router with what it routes to."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.compare.sources import Source, root
from deeppatch.cli.compose.assembling import split_models
from deeppatch.cli.context import Context
from deeppatch.cli.locating import MODULES
from deeppatch.cli.predecessors import base_model, check_classes, given_or_read, metadata, patched_copy, restore
from deeppatch.data import digest
from deeppatch.decomposition.head import DecomposedHead, with_head
from deeppatch.errors import OtherBase, StaleArtifact, UserError
from deeppatch.features import last_linear
from deeppatch.modular.assembly_controls import ASSEMBLED, ENSEMBLE, Together
from deeppatch.patching.calibration import Experts, switch_between
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.patching.switch import Switch
from deeppatch.progress import info
from deeppatch.saving import ROUTER, load
from deeppatch.storage import is_of, parse_json, read_given, sha256
from deeppatch.zoo import weights

PRETRAINED = "pretrained"
FINETUNED, ALWAYS, SWITCHED, DECOMPOSED = "finetuned", "patched always on", "switched", "decomposed"
STATISTICS = "norms, nothing trained"


@dataclass(frozen=True)
class Member:
    """A network to compare, and what its row of the ledger says of it."""

    network: nn.Module
    name: str
    method: str
    source: Source
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


def load_base(context: Context) -> tuple[str, nn.Module]:
    """Return name and network of what all others are compared with.

    It is what pretrain left; of a classifier that compose has assembled all models together whose modules it has.
    """
    found = context.found["base"]
    if ASSEMBLED not in metadata(found.path):
        return PRETRAINED, base_model(context)
    content, record = given_or_read(context, found), found.record or {}
    read = [Path(name) for name in record.get("inputs", {}) if Path(name).name == MODULES.file]
    if not read:
        raise UserError(f"{found.path} does not say of which models it is made; leave it in the folder of its run")
    models = split_models(context, [root(found.path.parent) / each.parent for each in read])
    info(f"inherited {found.path} (base {sha256(content)[:12]})")
    return ENSEMBLE, context.place(Together(models, context.source.classes))


def load_member(context: Context, model: nn.Module, source: Source) -> Member:
    """Return the network that a file holds; UserError where it was made from other weights or images, or is damaged."""
    _check_data(context, source)
    content = _content(context, source)
    tensors, meta = tensors_from_bytes(content, source.path) if source.path.suffix == ".safetensors" else ({}, {})
    sizes = {source.path.name: len(content)}
    if any(name.startswith(ROUTER) for name in tensors):
        name, network = SWITCHED, load(source.path, model)
    elif ASSEMBLED in meta:
        check_classes(context, meta, source.path)
        name, network = ASSEMBLED, load(source.path)
    elif "router" in meta:
        name, network = (
            _switched_name(source),
            _switched(context, model, source, Router.from_bytes(content, source.path), sizes),
        )
    elif "bank" in meta:
        _check_base(meta.get("base"), model, source)
        name, network = "bank", load(source.path).apply(model)
    elif {"kind", "base"} <= meta.keys():
        name, network = ALWAYS, patched_copy(context, model, _patch(context, model, content, source))
    else:
        name, network = _whole_name(source), _whole(context, model, source, tensors, meta)
    metrics = _metrics(source)
    facts = {**source.facts(sha256(content)), **{key: metrics[key] for key in ("passes",) if key in metrics}}
    if remark := metrics.get("calibration", {}).get("remark"):  # evaluate's: the network has seen the images
        facts["remark"] = remark
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


def _patch(context: Context, model: nn.Module, content: bytes, source: Source) -> Patch:
    patch = Patch.from_bytes(content, source.path)
    check_classes(context, patch.about, source.path)
    _check_base(patch.base, model, source)
    return patch


def _check_base(base: str | None, model: nn.Module, source: Source) -> None:
    if base is not None and base != state_digest(model.state_dict()):
        raise OtherBase(source.path, str((source.record or {}).get("command", "correct")))


def _switched(context: Context, model: nn.Module, source: Source, router: Router, sizes: dict[str, int]) -> Switch:
    """Return the model that routes between what its router was fitted for: a patch, or several corrections."""
    record = source.record or {}
    settings, inputs = record.get("settings", {}), record.get("inputs", {})
    method = settings.get("crt_method", "patch")
    read = record.get("consumed", {}).get("patch" if method == "patch" else "finetuned")
    if read is None:
        raise UserError(f"{source.path} does not say what it routes to; give the folder that evaluate left")
    first = _correction(context, model, replace(source, path=source.output / read["file"]), read["sha256"], sizes)
    corrected: Experts = first
    if method != "patch" or settings.get("experts"):
        corrected = {"patched" if method == "patch" else method: first}
        for number, given in enumerate(map(Path, settings.get("experts") or [])):
            places = [name for name in inputs if _names_the_same(Path(name), given)]
            path = source.output / places[0] if places else given
            digest = inputs.get(places[0]) if places else None
            corrected[f"{number}: {given.parent.name}"] = _correction(
                context, model, replace(source, path=path), digest, sizes
            )
    switched = switch_between(model, corrected, context.example.to(context.device))
    switched.router = router.to(context.device)
    switched.vote = settings.get("switch") == "batch"
    return switched


def _names_the_same(recorded: Path, given: Path) -> bool:
    """Tell whether two paths agree in all parts that both have, from the end: one may be relative to another folder."""
    pairs = zip(reversed(recorded.parts), reversed(given.parts), strict=False)
    return all(one == another for one, another in pairs)


def _correction(
    context: Context, model: nn.Module, source: Source, digest: str | None, sizes: dict[str, int]
) -> Patch | nn.Module:
    """Return the patch or the network that a router was fitted for; it must be the same still."""
    content = read_given(source.path)
    if sha256(content) != digest:
        raise StaleArtifact(f"its router was fitted for another {source.path}; run evaluate again")
    context.stage.inherit(source.path, content)
    sizes[str(source.path)] = len(content)
    tensors, meta = tensors_from_bytes(content, source.path)
    if "bank" in meta:
        _check_base(meta.get("base"), model, source)
        network: nn.Module = load(source.path).apply(model)
        return network
    if {"kind", "base"} <= meta.keys():
        return _patch(context, model, content, source)
    return _whole(context, model, replace(source, record=None), tensors, meta)


def _whole(
    context: Context, model: nn.Module, source: Source, tensors: dict[str, Tensor], meta: Mapping[str, Any]
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


def _switched_name(source: Source) -> str:
    method = (source.record or {}).get("settings", {}).get("crt_method", "patch")
    return SWITCHED if method == "patch" else f"{SWITCHED} {method}"


def _whole_name(source: Source) -> str:
    record = source.record or {}
    settings = record.get("settings", {})
    if record.get("stage") == "relearn":
        return f"relearned ({settings.get('method')})"
    if record.get("stage") == "decompose":
        return DECOMPOSED
    if settings.get("crt_method") == "norms" and settings.get("crt_epoch") == 0:
        return STATISTICS
    method = settings.get("crt_method") or (source.path.stem if record else source.path.parent.name)
    return FINETUNED if method == "finetune" else str(method)


def _metrics(source: Source) -> dict[str, Any]:
    path = source.path.with_name("metrics.json")
    if not source.record or not path.is_file():
        return {}
    with contextlib.suppress(ValueError):
        found = parse_json(path.read_bytes())
        if is_of(found, {str: object}) and is_of(found.get("stored_bytes", 0), int):
            return dict(found)
    raise StaleArtifact(f"{path} does not hold what its stage writes; run {source.record.get('stage')} again")
