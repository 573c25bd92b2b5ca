"""What depends on the correction that -c names: which options it reads, and its part of an artifact's name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deeppatch.cli.options import DEFAULT_RATIO
from deeppatch.patching.names import PUBLISHED_PATCHES
from deeppatch.retrain.names import PEERS, STATISTICS_OF_PATCH
from deeppatch.storage import read_record

# how a correction is trained
TRAINING = ("lr", "momentum", "weight_decay", "crt_epoch")
# the options of methods of other papers, which are also arguments of their functions
PEER_OPTIONS = {
    "sensei": ("popsize", "robust_threshold", "crossover_prob"),
    "apricot": ("rdlm", "rdlm_images", "rdlm_epoch", "fix_steps", "eta", "strategy"),
    "robot": ("select", "select_images", "select_only", "select_half"),
    "gini": ("select_images", "select_only", "select_half"),
    "augmix": ("augmix_weight", "augmix_blur"),
}
# options of correct that only some corrections read, and by which
TRAINED_CORRECTIONS = ("patch", "finetune", "norms", "surgical", *PEERS)
OF_CORRECTION: dict[str, tuple[str, ...]] = {
    "passes": TRAINED_CORRECTIONS, "filter_seed": ("patch",), "init": ("patch",), "statistics": ("interpolate",),
    "conditions": ("bank",), "block": ("surgical",), "max_clean_drop": ("interpolate", "bank"),
    "unlabelled": (STATISTICS_OF_PATCH,), "train_on": ("patch",),
    **{each: tuple(p for p in PEERS if each in PEER_OPTIONS[p]) for own in PEER_OPTIONS.values() for each in own},
    **{each: ("sensei", "patch") for each in PEER_OPTIONS["sensei"]},  # a patch with --train_on sensei
}  # fmt: skip


def corrected_file(text: str) -> Path:
    """Return the file of a corrected network's weights: what is named, or the one in the folder that is.

    ArgumentTypeError for what another stage than correct has left.
    """
    path = Path(text)
    file = path / "weights.safetensors" if path.is_dir() else path
    record = read_record(file.parent)
    if record is not None and record.get("stage") != "correct":
        raise argparse.ArgumentTypeError(
            f"{text} was left by {record.get('stage')}, not by correct; --base starts from any network"
        )
    return file


def estimates_only(options: Any) -> bool:
    """Tell whether normalisations get new statistics, and nothing is trained."""
    return getattr(options, "crt_method", None) == "norms" and getattr(options, "crt_epoch", None) == 0


def problems_of_published_patch(word: str | None, options: Any) -> list[str]:
    """Return what contradicts DeepPatch's published -p: other options that it sets, and what it needs."""
    if word is None:
        return []
    stands_for = {key: value for key, value in PUBLISHED_PATCHES[word].items() if hasattr(options, key)}
    problems = [
        f"-p {word} is --{key} {value}: leave --{key} {getattr(options, key)} out"
        for key, value in stands_for.items()
        if getattr(options, key) != value
    ]
    if getattr(options, "crt_method", "patch") != "patch":
        problems.append(f"-p {word} is a patch: leave -c {options.crt_method} out")
    if word == "SS-DP" and not options.weights:
        problems.append("-p SS-DP patches a network of -c sensei: name the folder that it left with --base_from")
    return problems


def correction(options: Any) -> str:
    """Return the part of a name that tells one correction from another."""
    if estimates_only(options):
        return "norms-statistics"
    if options.crt_method != "patch":
        return str(options.crt_method)
    name = f"patch-{options.crt_type}-{options.fs_method}"
    usual = None if options.fs_method == "ratioestim" else DEFAULT_RATIO
    name += f"-ratio{options.susp_ratio:g}" if options.susp_ratio not in (None, usual) else ""
    return name + (f"-{options.susp_side}" if options.susp_side != "front" else "")
