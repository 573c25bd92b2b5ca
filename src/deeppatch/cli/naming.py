"""What the folder of an artifact is called: OUTPUT/DATASET/MODEL/STEM-SUFFIX, readable, from a stage's options."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from deeppatch.artifacts import read_given
from deeppatch.cli.options import ANNOTATE, DEFAULT_K, DEFAULT_RATIO, DEFAULT_SEED, USUAL_KS
from deeppatch.data import names
from deeppatch.modular.weak_networks import published_weak_network


def stage_folder(stage: str, options: argparse.Namespace) -> Path:
    """Return the folder that a stage leaves for these options."""
    return model_folder(options) / f"{STEMS[stage](options)}{suffix(options)}"


def model_folder(options: argparse.Namespace) -> Path:
    """Return OUTPUT/DATASET/MODEL."""
    return Path(options.output_dir, names.slug(options.dataset), options.model)


def suffix(options: argparse.Namespace) -> str:
    """Return the end of a folder's name: noise, bias, seed, val's share and limit where not the default."""
    noise, bias = getattr(options, "noise_type", "gaussion"), getattr(options, "bias", None)
    parts = [noise] if noise != "gaussion" else []
    parts += [f"bias{bias}"] if bias else []
    parts += [f"seed{options.seed}"] if options.seed != DEFAULT_SEED else []
    parts += [f"val{options.val_share:g}"] if options.val_share is not None else []
    parts += [f"limit{options.limit}"] if options.limit is not None else []
    return "".join(f"-{part}" for part in parts)


def correction(options: argparse.Namespace) -> str:
    """Return the part of a name that tells one correction from another."""
    if options.crt_method != "patch":
        return str(options.crt_method)
    name = f"patch-{options.crt_type}-{options.fs_method}"
    usual = None if options.fs_method == "ratioestim" else DEFAULT_RATIO
    name += f"-ratio{options.susp_ratio:g}" if options.susp_ratio not in (None, usual) else ""
    return name + (f"-{options.susp_side}" if options.susp_side != "front" else "")


def _assess(options: argparse.Namespace) -> str:
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


def _evaluate(options: argparse.Namespace) -> str:
    vote = "-batch" if getattr(options, "switch", "sample") == "batch" else ""
    return f"switch-{correction(options)}-{options.router}{vote}"


def _influence(options: argparse.Namespace) -> str:
    k = options.k if isinstance(options.k, int) else options.k[0]
    name = "influence" if k == DEFAULT_K else f"influence-k{k}"
    return name + ("-augment" if getattr(options, "augment", False) else "")


def _decompose(options: argparse.Namespace) -> str:
    parts = ["decompose", options.action, *(["head"] if options.head_only else [])]
    usual = USUAL_KS.get(options.action, [DEFAULT_K])
    parts += ["k" + "-".join(map(str, options.k))] if options.k not in (None, usual) else []
    parts += [_given(options.indices)] if options.indices else []
    return "-".join(parts)


def _given(paths: Sequence[Path]) -> str:
    """Tell given files apart by content."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(read_given(path)).digest())
    return f"given-{digest.hexdigest()[:6]}"


def _modularize(options: argparse.Namespace) -> str:
    parts = ["modularize", options.method]
    parts += ["no-head"] if options.no_head else []
    parts += [options.preset] if options.preset != "auto" else []
    return "-".join(parts)


def _compose(options: argparse.Namespace) -> str:
    parts = [_modularize(options).replace("modularize", "compose", 1), options.fit]
    usual = published_weak_network(options.model, options.dataset, options.fit)
    parts += [options.weak] if options.weak not in (None, usual) else []
    parts += [options.target] if options.target != "all" else []
    parts += [join.replace(":", "").replace(",", "-") for join in options.join or []]
    return "-".join(parts)


def _annotate(options: argparse.Namespace) -> str:
    """A budget of 5% is called 5pc."""
    named = {
        "budget": options.budget,
        "": options.features,
        "encoder": options.encoder,
        "epochs": options.encoder_epochs,
        "views": options.views,
    }
    usual = [ANNOTATE[name] for name in ("budget", "features", "encoder", "encoder_epochs", "views")]
    parts = [f"{name}{value}" for (name, value), default in zip(named.items(), usual, strict=True) if value != default]
    return "-".join(["annotate", options.method, *parts]).replace("%", "pc")


def _relearn(options: argparse.Namespace) -> str:
    if options.compare:
        return "relearn-compare"
    parts = [_annotate(options).replace("annotate", "relearn", 1)]
    return "-".join(parts + [options.use] * (options.use != "both"))


STEMS: dict[str, Callable[[argparse.Namespace], str]] = {
    "pretrain": lambda options: "pretrain",
    "eval": lambda options: f"eval-{correction(options)}",  # pretrain --state corrected
    "assess": _assess,
    "correct": lambda options: f"correct-{correction(options)}",
    "evaluate": _evaluate,
    "export": lambda options: f"export-{correction(options)}-{options.router}",
    "influence": _influence,
    "decompose": _decompose,
    "modularize": _modularize,
    "compose": _compose,
    "annotate": _annotate,
    "relearn": _relearn,
}
