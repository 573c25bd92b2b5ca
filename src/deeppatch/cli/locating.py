"""Where a stage finds what it reads: the file that an option names, the default run's, or the only finished run's."""

from __future__ import annotations

import contextlib
import glob
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deeppatch.cli.naming import IDENTITIES, artifact_id, model_folder, readable_name
from deeppatch.cli.options import DEFAULT_K, DEFAULT_KS, OPTION_NAMES, command_for
from deeppatch.data import corruption_names
from deeppatch.errors import MissingArtifact, UserError
from deeppatch.hybrid.names import PRIOR
from deeppatch.retrain.names import STATISTICS_OF_PATCH
from deeppatch.storage import RECORD, read_given, read_record, sha256

MOST_LISTED = 4
PLAIN_DEGRADATION = {"noise_type": corruption_names.DEFAULT, "severity": None, "hold_out": None, "degradation": ""}


@dataclass(frozen=True)
class Role:
    """A kind of input: `file` of the earlier stage `stage`, or what the option `option` names.

    `changes` are options in which the stage that left it does not follow the one that reads it.
    """

    stage: str
    file: str
    option: str
    changes: Mapping[str, object] = field(default_factory=dict)


BASE = Role("pretrain", "weights.safetensors", "weights")
# a base that was measured on other degradations, or on other subsets, is the same network: compare takes it, too
SAME_BASES = tuple(
    Role("pretrain", "weights.safetensors", "weights", {**PLAIN_DEGRADATION, **changes})
    for changes in ({}, {"limit": None})
)
# where nothing was trained for these data, compare measures against the classifier that compose has assembled
ASSEMBLED = Role("compose", "assembled.safetensors", "weights")
RANKING = Role("assess", "ranking.json", "ranking", {"refine": 0, "race": None})
PATCH = Role("correct", "patch.safetensors", "patch", {"crt_method": "patch"})
FINETUNED = Role("correct", "weights.safetensors", "finetuned", {"crt_method": "finetune"})
# what corrections leave that is no whole network
CORRECTED = {"patch": "patch.safetensors", "bank": "bank.safetensors"}
ROUTER = Role("evaluate", "router.safetensors", "switched", {"switch": "sample"})
GIVEN_ROUTER = Role("evaluate", "router.safetensors", "router_file")
MODULES = Role("modularize", "modules.safetensors", "modules")
SELECTION = Role("annotate", "selection.safetensors", "selection")


@dataclass(frozen=True)
class Found:
    """A file that a stage reads: its record, where it has one, and whether it is what the default commands leave."""

    path: Path
    command: str
    digest: str
    record: dict[str, Any] | None
    is_default: bool
    given: bool = False


def roles(stage: str, options: Any) -> dict[str, Role]:
    """Return what a stage reads of earlier ones, by the name of its role; base weights come first."""
    return READS.get(stage, lambda _options: {"base": BASE})(options)


def corrected(options: Any) -> Role:
    """Return what the correction that -c names leaves, if it is no patch; --finetuned names another file."""
    file = CORRECTED.get(options.crt_method, "weights.safetensors")
    return Role("correct", file, "finetuned", {"crt_method": options.crt_method})


def _of_correct(options: Any) -> dict[str, Role]:
    """Read a ranking for a patch of some filters, the fine-tuned network to interpolate, or the patch to change."""
    if options.crt_method == "patch" and ranks_filters(options):
        return {"base": BASE, "ranking": RANKING}
    further = {"interpolate": {"finetuned": FINETUNED}, STATISTICS_OF_PATCH: {"patch": PATCH}}
    return {"base": BASE, **further.get(options.crt_method, {})}


def ranks_filters(options: Any) -> bool:
    """Tell whether a patch needs a ranking: not for filters at random, and not for all filters."""
    return bool(options.ranking) or not (options.fs_method == "random" or options.susp_ratio == 1)


def _of_influence(options: Any) -> dict[str, Role]:
    """Index sets, one for each k, but where files are given or the stage extracts them itself."""
    ks = options.k or DEFAULT_KS.get(options.action, [DEFAULT_K])
    ks = [] if options.indices or options.action == "sweep" else ks
    return {f"indices of k={k}": Role("influence", "indices.json", "", {"k": k, "augment": False}) for k in ks}


def _of_evaluate(options: Any) -> dict[str, Role]:
    """Read the correction that -c names, beside a patch a fine-tuned network, and a router where one is given."""
    tuned = replace(FINETUNED, changes={"crt_method": options.crt_method})
    found = {"patch": PATCH, "finetuned": FINETUNED} if options.crt_method == "patch" else {"finetuned": tuned}
    return {"base": BASE, **found, **({"router": GIVEN_ROUTER} if options.router_file else {})}


def _of_relearn(options: Any) -> dict[str, Role]:
    """Read the selection of annotate, but for the correction of the prior, which needs no label."""
    if options.compare:
        return {}
    return {"base": BASE} if options.method == PRIOR else {"base": BASE, "selection": SELECTION}


# stages that are not here read base weights only
READS: dict[str, Callable[[Any], dict[str, Role]]] = {
    "pretrain": lambda _options: {},
    "eval": lambda options: {
        "base": BASE, **({"patch": PATCH} if options.crt_method == "patch" else {"finetuned": corrected(options)})
    },
    "assess": lambda options: {
        "base": BASE, **({"ranking": RANKING} if options.fs_method == "ratioestim" and options.ranking else {})
    },
    "correct": _of_correct,
    "evaluate": _of_evaluate,
    "export": lambda _options: {"base": BASE, "patch": PATCH, "router": ROUTER},
    "decompose": lambda options: {"base": BASE, **_of_influence(options)},
    "compose": lambda options: {} if options.assemble else {"base": BASE, "modules": MODULES},
    "relearn": _of_relearn,
}  # fmt: skip


def run_folder(stage: str, options: Any, found: Mapping[str, Found]) -> Path:
    """Return the folder that a stage leaves for these options, when it reads what was found."""
    consumed = {role: each.digest for role, each in found.items() if not each.is_default}
    return model_folder(options) / artifact_id(stage, options, consumed)


def locate_all(stage: str, options: Any) -> dict[str, Found]:
    """Find everything that a stage reads of earlier ones; what is not there is a MissingArtifact, if it must be."""
    found: dict[str, Found] = {}
    for name, role in roles(stage, options).items():
        try:
            patch = found["patch"] if name == "router" else None
            found[name] = locate(role, options, found.get("base"), patch)
        except MissingArtifact:
            if stage == "compare":
                found[name] = _same_base(options)
                continue
            optional = stage == "evaluate" and name == "finetuned" and options.crt_method == "patch"
            if not optional or getattr(options, "finetuned", None):
                raise
    return found


def _same_base(options: Any) -> Found:
    """Return a base that is the same network; one of another subset may be another, which only the user knows.

    Where pretrain has left none, the one classifier that was assembled of modules is what others are compared with.
    """
    for role in SAME_BASES:
        with contextlib.suppress(MissingArtifact):
            return locate(role, options)
    others = [folder / BASE.file for folder, _record in _finished(BASE, options)]
    assembled = dict(_finished(ASSEMBLED, options))
    if not others and not assembled:
        return locate(BASE, options)
    if not others and len(assembled) == 1:
        ((folder, record),) = assembled.items()
        return _of_run(folder, ASSEMBLED, str(record.get("command")), record, is_default=False)
    choices = others or [folder / ASSEMBLED.file for folder in assembled]
    folders = ", ".join(path.parent.name for path in choices[:MOST_LISTED])
    raise UserError(
        f"pretrain has left no network for these options in {model_folder(options)}, but "
        f"{'for others' if others else 'compose has assembled several'}: {folders}; name the one to compare with, such "
        f"as --base {shlex.quote(str(choices[0]))}"
    )


def locate(role: Role, options: Any, base: Found | None = None, patch: Found | None = None) -> Found:
    """Find the file that plays a role.

    It is what the role's option names; else that of the default run; else that of the only finished run of its stage
    whose readable options are the same. Runs that read `base` and `patch`, where they are given, come first, and of
    several the one with the default run's readable name. Raises MissingArtifact, or UserError where several runs could
    be meant.
    """
    reader = SimpleNamespace(**{**vars(options), **role.changes})
    command = command_for(role.stage, options, **_changes_in_command(role))
    if given := getattr(options, role.option, None):
        return _given(Path(given), command)
    default = model_folder(options) / readable_name(role.stage, reader)
    runs = dict(_finished(role, options))
    same = {folder: record for folder, record in runs.items() if _name_of_run(record, role) == default.name}
    fitting = same
    for read in filter(None, (base, patch)):
        fitting = {f: r for f, r in fitting.items() if read.digest in r["inputs"].values()} or fitting
    if default in fitting or (default / role.file).exists() and not fitting:
        return _of_run(default, role, command, same.get(default), is_default=True)
    plain = {f: r for f, r in fitting.items() if re.fullmatch(re.escape(default.name) + "-[0-9a-f]{6}", f.name)}
    if len(fitting) == 1 or len(plain) == 1:
        ((folder, record),) = (plain or fitting).items()
        return _of_run(folder, role, command, record, is_default=False)
    if fitting:
        listed = _listed(role, fitting, reader, {"base": base, "patch": patch})
        first = min(fitting) / role.file
        choose = (
            f"choose one with --{OPTION_NAMES.get(role.option, role.option)} {first}"
            if role.option
            else "delete all but one"
        )
        raise UserError(f"{role.stage} has {len(fitting)} finished runs for this: {listed}; {choose}")
    for folder in _with_damaged_record(default, role):
        return _of_run(folder, role, command, None, is_default=False)
    raise MissingArtifact(default / role.file, command, _listed(role, runs, reader, {"base": base, "patch": patch}))


def _changes_in_command(role: Role) -> dict[str, object]:
    return {name: value for name, value in role.changes.items() if name in ("crt_method", "k")}


def _given(path: Path, command: str) -> Found:
    content = read_given(path)
    record = read_record(path.parent)
    known = record is not None and record["outputs"].get(path.name) == sha256(content)
    return Found(path, command, sha256(content), record if known else None, is_default=False, given=True)


def _of_run(folder: Path, role: Role, command: str, record: dict[str, Any] | None, *, is_default: bool) -> Found:
    """Return the file of a run; whoever reads it checks that it is undamaged."""
    digest = str((record or {}).get("outputs", {}).get(role.file, ""))
    return Found(folder / role.file, command, digest, record, is_default)


def _finished(role: Role, options: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = model_folder(options)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        record = read_record(path) if path.is_dir() and not path.name.startswith(".") else None
        if record and record.get("stage") == role.stage and role.file in record["outputs"]:
            yield path, record


def _with_damaged_record(default: Path, role: Role) -> Iterator[Path]:
    """Yield folders that would play the role if their record were not damaged."""
    for folder in sorted(default.parent.glob(f"{glob.escape(default.name)}*")):
        hashed = re.fullmatch(re.escape(default.name) + "(-[0-9a-f]{6})?", folder.name)
        if hashed and (folder / role.file).exists() and (folder / RECORD).exists() and read_record(folder) is None:
            yield folder


def _name_of_run(record: dict[str, Any], role: Role) -> str | None:
    """Return the readable name of a finished run as later stages would name it; None where its record is incomplete."""
    try:
        return readable_name(role.stage, SimpleNamespace(**{**record["settings"], **_unread(role)}))
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _unread(role: Role) -> dict[str, object]:
    """Options that readers of a role do not have: runs that differ in them only may stand in for each other."""
    return {name: value for name, value in role.changes.items() if name in ("refine", "race")}


def _listed(role: Role, runs: Mapping[Path, dict[str, Any]], reader: Any, read: Mapping[str, Found | None]) -> str:
    """Name finished runs, and in what each differs from what the reader's options and the defaults would make.

    `read` is what the reader itself reads, by role, where it is known.
    """
    names = [f"{folder.name} ({_difference(role, record, reader, read)})" for folder, record in runs.items()]
    return ", ".join(names[:MOST_LISTED]) + (f" and {len(names) - MOST_LISTED} more" * (len(names) > MOST_LISTED))


def _difference(role: Role, record: dict[str, Any], reader: Any, read: Mapping[str, Found | None]) -> str:
    settings = record.get("settings", {})
    usual = record.get("defaults", {})
    identity = IDENTITIES[role.stage]
    compared = {name: getattr(reader, name, usual.get(name)) for name in identity.named}
    compared |= {name: usual.get(name) for name in identity.hashed}
    compared |= {
        name: getattr(reader, name, None)
        for name in (*PLAIN_DEGRADATION, "bias", "split_digest", "seed", "val_share", "limit", "image_size", "resize")
    }
    found = [
        f"{name} {settings[name]}"
        for name, value in compared.items()
        if name in settings and settings[name] != value and (settings[name] or value)  # not given is none, or empty
    ]
    consumed = [
        name
        for name, each in record.get("consumed", {}).items()
        if (
            each.get("sha256") != own.digest
            if (own := read.get(name)) and own.digest
            else not each.get("default", True)
        )
    ]
    return ", ".join(found + [f"another {name}" for name in consumed]) or "the same options"
