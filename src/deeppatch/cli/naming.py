"""What an artifact is called: OUTPUT/DATASET/MODEL/STEM-SUFFIX[-HASH], and which options it depends on.

The stem and the suffix say the options that users vary most, so that default commands have plain names. A short hash of
every other option of the stage's own that changes the result follows as soon as one is off its default, or as soon as
the stage has consumed something else than what default runs left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deeppatch.cli.corrections import OF_CORRECTION, TRAINED_CORRECTIONS, TRAINING, correction, estimates_only
from deeppatch.cli.module_stems import compose, modularize
from deeppatch.cli.options import ANNOTATE, DEFAULT_K, DEFAULT_KS, DEFAULT_RATIO, DEFAULT_SEED
from deeppatch.data import corruption_names
from deeppatch.data.names import slug
from deeppatch.hybrid.names import PRIOR
from deeppatch.storage import RECORD, read_given, sha256
from deeppatch.zoo.names import model_slug

# options of all stages that the suffix says
IN_SUFFIX = (
    "noise_type", "severity", "hold_out", "degradation", "bias", "split_digest", "seed", "val_share", "limit",
    "image_size", "resize",
)  # fmt: skip
# options that cannot change a result beyond rounding, or that say where things are
INCIDENTAL = ("device", "gpu", "mem", "data_dir", "output_dir", "resume", "sink", "onnx")
# what says which artifact is meant, and bookkeeping
NO_SETTINGS = (
    "model", "dataset", "weights", "ranking", "patch", "finetuned", "switched", "router_file", "modules", "selection",
    "state", "splits", "prefix", "command", "defaults", "version", "help",
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a stage's artifacts depend on: `stem` shows the options `named`; `hashed` count where off their default."""

    stem: Callable[[Any], str]
    named: tuple[str, ...]
    hashed: tuple[str, ...]


def artifact_id(stage: str, options: Any, consumed: Mapping[str, str]) -> str:
    """Return the name of the folder that a stage leaves.

    `consumed` has the digest of everything that the stage reads and that is not of a default run, by its role.
    """
    different: dict[str, object] = {f"consumed {role}": digest for role, digest in consumed.items()}
    said = {"crt_epoch"} if estimates_only(options) else set()  # by the readable name
    for name in [name for name in hashed(stage, options) if name not in said]:
        if (value := getattr(options, name, None)) != options.defaults.get(name):
            different[name] = _content(value)
    if not different:
        return readable_name(stage, options)
    return f"{readable_name(stage, options)}-{sha256(json.dumps(different, sort_keys=True).encode())[:6]}"


def hashed(stage: str, options: Any) -> tuple[str, ...]:
    """Return the options that the hash of a stage's name covers."""
    names = IDENTITIES[stage].hashed
    if stage == "assess" and options.fs_method == "ratioestim":
        return names + TRAINING
    if stage == "decompose" and options.action == "validate":  # which accepts it, as the published command does
        return tuple(name for name in names if name != "lr")
    if stage == "pretrain" and options.bias:  # which cannot do without
        return tuple(name for name in names if name != "train")
    if stage == "relearn" and options.method == PRIOR:  # which trains nothing
        return ("trust_prior", *_MACHINE)
    if stage == "correct":
        readers = {**dict.fromkeys(TRAINING, TRAINED_CORRECTIONS), **OF_CORRECTION}
        return tuple(name for name in names if options.crt_method in readers.get(name, (options.crt_method,)))
    return names


def own_settings(stage: str, options: Any) -> dict[str, object]:
    """Return all options that a run of a stage depends on, in the order of their names, as JSON holds them."""
    names = {"model", "dataset", "device", "gpu", "mem", *IN_SUFFIX, *IDENTITIES[stage].named, *hashed(stage, options)}
    found = {name: getattr(options, name) for name in sorted(names) if hasattr(options, name)}
    return dict(json.loads(json.dumps(found, default=str)))


def unused_options(stage: str, options: Any) -> list[str]:
    """Return the options that a stage accepts for the common command line and does not read, and that were given."""
    identity = IDENTITIES[stage]
    always = () if stage in ("correct", "decompose", "relearn") else identity.hashed
    named = identity.named
    if stage == "relearn" and options.method == PRIOR:  # which chooses no images
        named = ("method", "compare")
    read = {*IN_SUFFIX, *INCIDENTAL, *named, *always, *hashed(stage, options), *NO_SETTINGS}
    return [name for name in given_options(options) if name not in read]


def idle_in(stage: str, options: Any, name: str) -> str:
    """Return where an option changes nothing: in the stage, or in the way of it that other options choose."""
    ways = {"correct": "-c {crt_method}", "decompose": "{action}", "relearn": "--method {method}"}
    if stage not in ways or name not in (*IDENTITIES[stage].named, *IDENTITIES[stage].hashed):
        return stage
    return f"{stage} {ways[stage].format(**vars(options))}"


def given_options(options: Any) -> list[str]:
    """Return the options that have another value than their default."""
    return [name for name, usual in options.defaults.items() if getattr(options, name, usual) != usual]


def readable_name(stage: str, options: Any) -> str:
    """Return the readable part of a name."""
    return IDENTITIES[stage].stem(options) + suffix(options)


def model_folder(options: Any) -> Path:
    """Return OUTPUT/DATASET/MODEL."""
    return Path(options.output_dir, slug(options.dataset), model_slug(options.model))


def suffix(options: Any) -> str:
    """Return the end of a folder's name: noise, bias, split, seed, val's share and limit where not the default.

    Behind the names of functions and files of degraded images stands a digest of what they hold.
    """
    noise, bias = getattr(options, "noise_type", "gaussion"), getattr(options, "bias", None)
    specification = corruption_names.parse(noise, getattr(options, "severity", None))
    parts = [specification.stem] if specification.stem else []
    if held_out := getattr(options, "hold_out", None):
        parts += [f"without-{corruption_names.parse(held_out).stem or corruption_names.DEFAULT}"]
    parts += [options.degradation[:6]] if getattr(options, "degradation", "") else []
    parts += [f"bias{bias}"] if bias else []
    parts += [f"splits{options.split_digest[:6]}"] if getattr(options, "split_digest", "") else []
    parts += [f"seed{options.seed}"] if options.seed != DEFAULT_SEED else []
    parts += [f"val{options.val_share:g}"] if options.val_share is not None else []
    parts += [f"limit{options.limit}"] if options.limit is not None else []
    parts += [f"size{options.image_size}"] if getattr(options, "image_size", None) is not None else []
    parts += [options.resize] if getattr(options, "resize", "crop") != "crop" else []
    return "".join(f"-{part}" for part in parts)


def _content(value: object) -> object:
    """Return what is hashed of an option's value: of a file its content, of a folder the record of its run."""
    if isinstance(value, Path) and value.is_dir():
        return sha256(read_given(value / RECORD)) if (value / RECORD).is_file() else str(value)
    if isinstance(value, Path):
        return sha256(read_given(value))
    if isinstance(value, (list, tuple)):
        return [_content(each) for each in value]
    return value


def _assess(options: Any) -> str:
    """Ratio estimation depends on the kind of patch and the side too."""
    parts = ["assess", options.fs_method]
    if options.fs_method == "ratioestim":
        parts += [options.crt_type] if options.crt_type != "replace" else []
        parts += [options.susp_side] if options.susp_side != "front" else []
    refine, race = getattr(options, "refine", 0), getattr(options, "race", None)
    parts += [f"refine{refine}"] if refine else []
    parts += [f"race{race:g}"] if race is not None else []
    if refine or race is not None:  # what is known depends on where the cut is
        parts += [f"ratio{options.susp_ratio:g}"] if options.susp_ratio not in (None, DEFAULT_RATIO) else []
        parts += [options.susp_side] if options.susp_side != "front" else []
    return "-".join(parts)


def _evaluate(options: Any) -> str:
    vote = "-batch" if getattr(options, "switch", "sample") == "batch" else ""
    return f"switch-{correction(options)}-{options.router}{vote}"


def _influence(options: Any) -> str:
    k = options.k if isinstance(options.k, int) else options.k[0]
    name = "influence" if k == DEFAULT_K else f"influence-k{k}"
    return name + ("-augment" if getattr(options, "augment", False) else "")


def _decompose(options: Any) -> str:
    parts = ["decompose", options.action, *(["head"] if options.head_only else [])]
    usual = DEFAULT_KS.get(options.action, [DEFAULT_K])
    parts += ["k" + "-".join(map(str, options.k))] if options.k not in (None, usual) else []
    parts += [_given(options.indices)] if options.indices else []
    return "-".join(parts)


def _given(paths: Sequence[Path]) -> str:
    """Tell given files apart by content."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(read_given(path)).digest() for path in paths))
    return f"given-{digest.hexdigest()[:6]}"


def _checkpoint(path: Path) -> str:
    """Tell given checkpoints apart by content; one that is gone, as that of an earlier run may be, has no name."""
    if not path.is_file():
        return "absent"
    state = path.stat()
    return _checkpoint_as_it_is(path, state.st_size, state.st_mtime_ns)


@cache
def _checkpoint_as_it_is(path: Path, size: int, modified: int) -> str:
    """Read a large file once, as long as its size and its time of modification stay."""
    return _given([path])


def _annotate(options: Any) -> str:
    """A budget of 5% is called 5pc."""
    words = {
        "budget": "budget", "features": "", "encoder": "encoder", "encoder_epochs": "epochs", "views": "views",
        "tau": "tau", "cluster_size": "size", "coreset_start": "from-", "rounds": "rounds", "step": "step",
    }  # fmt: skip
    given = {name: getattr(options, name, ANNOTATE[name]) for name in words}
    if file := getattr(options, "features_file", None):
        given["features"] = _checkpoint(Path(file))
    parts = [f"{words[name]}{value}" for name, value in given.items() if value != ANNOTATE[name]]
    return "-".join(["annotate", options.method, *parts]).replace("%", "pc")


def _relearn(options: Any) -> str:
    if options.compare:
        return "relearn-compare"
    if options.method == PRIOR:
        return "relearn-prior"
    parts = [_annotate(options).replace("annotate", "relearn", 1)]
    usual = {"use": "both", "pseudo_labels": "safe", "scope": "all"}
    parts += [getattr(options, name) for name, value in usual.items() if getattr(options, name, value) != value]
    return "-".join(parts + ["no-prior"] * bool(getattr(options, "no_prior", False)))


_CORRECTION = ("crt_method", "crt_type", "fs_method", "susp_ratio", "susp_side")
_CHOICE = tuple(ANNOTATE)
_SEARCH = ("budget", "search_images", "sensitivity_images", "sensitive", "alpha", "shared", "max_drop", "lr")
_TUNING = ("tune_epochs", "tune_lr")
_BESIDE_THE_TABLE = (
    "adapt", "stream", "per_corruption", "single", "adapt_batch", "attack", "attack_images", "latency",
)  # fmt: skip
_MACHINE = ("batch_size", "amp")
_PRETRAIN = (
    "train", "modular", "modular_weights", "recipe", "max_epoch", "lr", "momentum", "weight_decay", "mean", "std",
    "weights", *_MACHINE,
)  # fmt: skip
IDENTITIES: dict[str, Identity] = {
    "pretrain": Identity(lambda options: "pretrain", (), _PRETRAIN),
    # pretrain --state corrected
    "eval": Identity(lambda options: f"eval-{correction(options)}", _CORRECTION, _MACHINE),
    "assess": Identity(_assess, ("fs_method", "refine", "race", "crt_type", "susp_ratio", "susp_side"), _MACHINE),
    "correct": Identity(
        lambda options: f"correct-{correction(options)}", _CORRECTION, (*TRAINING, *OF_CORRECTION, *_MACHINE)
    ),
    "evaluate": Identity(
        _evaluate,
        (*_CORRECTION, "router", "switch"),
        ("max_clean_drop", "max_flips", "calibrate_on", "alarm", "experts", "neighbours", *_MACHINE),
    ),
    "export": Identity(
        lambda options: f"export-{correction(options)}-{options.router}", (*_CORRECTION, "router"), ("batch_size",)
    ),
    "influence": Identity(_influence, ("k", "augment"), ("compare", *_MACHINE)),
    "decompose": Identity(
        _decompose, ("action", "head_only", "k", "indices"), ("csg", "draws", "lr", "max_epoch", *_MACHINE)
    ),
    "modularize": Identity(
        modularize,
        ("method", "no_head", "preset"),
        (*_SEARCH, *_TUNING, "importance", "start", "scale_scores", "patience", *_MACHINE),
    ),
    "compose": Identity(
        compose,
        ("method", "no_head", "preset", "fit", "weak", "target", "join"),
        ("weak_epoch", "assemble", "no_calibration", *_MACHINE),
    ),
    "annotate": Identity(_annotate, _CHOICE, _MACHINE),
    "compare": Identity(
        lambda options: "compare",
        (),
        ("files", "networks", "require", "gate", "confident", *_BESIDE_THE_TABLE, *_MACHINE),
    ),
    "relearn": Identity(
        _relearn,
        (*_CHOICE, "use", "compare", "pseudo_labels", "scope", "no_prior"),
        (
            "labels",
            "epochs",
            "lr",
            "weight_decay",
            "max_batches",
            "ramp",
            "pseudo_weight",
            "pool_weights",
            "trust_prior",
            *_MACHINE,
        ),
    ),
}
