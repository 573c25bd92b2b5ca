"""The options of stages as typed values, and the commands that messages show."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_SEED = 2021
DEFAULT_RATIO = 0.25
DEFAULT_K = 5  # features per class
DEFAULT_KS = {
    "mutual-info": [5, 10, 20],
    "sweep": [5, 8, 10, 15, 20, 25, 30, 40, 50, 64],
}  # of some actions of decompose
SCRIPTS = {
    "pretrain": "eval", "assess": "select", "correct": "correct", "evaluate": "switch", "export": "export",
    "influence": "influence", "decompose": "decompose", "modularize": "modularize", "compose": "compose",
    "annotate": "annotate", "relearn": "relearn", "compare": "compare", "demo": "demo",
}  # fmt: skip

# options that select other artifacts, with their defaults, and pairs of stage and option that are left out
SHARED_SETTINGS = {
    "noise_type": "gaussion", "severity": None, "hold_out": None, "seed": DEFAULT_SEED, "val_share": None,
    "limit": None, "weights": None, "ranking": None, "image_size": None, "resize": "crop", "bias": None,
    "splits": None, "data_dir": Path("data"),
    "output_dir": Path("output"),
}  # fmt: skip
IGNORED = {("pretrain", "weights"), ("pretrain", "ranking"), ("assess", "ranking")}
# options of a stage that select other artifacts of it; those of annotate
ANNOTATE: dict[str, object] = {
    "method": "hybrid", "budget": "1%", "features": "penultimate", "features_file": None, "encoder": "resnet18",
    "encoder_epochs": 100, "views": 8, "tau": "auto", "cluster_size": 10, "coreset_start": "train", "rounds": 1,
    "step": None,
}  # fmt: skip
STAGE_SETTINGS: dict[str, dict[str, object]] = {
    "pretrain": {"recipe": "default"}, "evaluate": {"router": "probe"},
    "modularize": {"method": "grad", "no_head": False, "preset": "auto"}, "annotate": ANNOTATE, "relearn": ANNOTATE,
}  # fmt: skip
OPTION_NAMES = {"weights": "base"}  # options with another name in the code
STAGES_WITH_RANKING = ("assess", "correct", "evaluate")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options of every stage: model and data, the machine, and how the command was called.

    `weights` is a file of base weights to use instead of those from pretrain (in pretrain itself: to load). `device` is
    `auto` until the stage opens. `prefix` is the start of commands in messages, and `command` the typed command,
    without -r.
    `defaults` are the default values of the stage's parser.
    """

    model: str = "resnet32"
    dataset: str = "digits"
    weights: Path | None = None
    val_share: float | None = None
    limit: int | None = None
    image_size: int | None = None
    resize: str = "crop"
    data_dir: Path = Path("data")
    output_dir: Path = Path("output")
    device: str = "auto"
    gpu: int = 0
    batch_size: int = 256
    amp: bool = False
    seed: int = DEFAULT_SEED
    resume: bool = False
    sink: str | None = None
    prefix: str = "python src/{script}.py"
    command: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RepairOptions(StageOptions):
    """The options that DeepPatch's stages share: the degradation, the ranking, the correction and its training.

    `degradation` is a digest of functions and files that `noise_type` names, which is computed before a stage opens.
    """

    noise_type: str = "gaussion"
    severity: str | None = None
    hold_out: str | None = None
    degradation: str = ""
    fs_method: str = "perfloss"
    crt_method: str = "patch"
    crt_type: str = "replace"
    crt_epoch: int = 20
    susp_ratio: float | None = None
    susp_side: str = "front"
    ranking: Path | None = None
    patch: Path | None = None
    finetuned: Path | None = None
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_epoch: int = 50


def call(prefix: str, stage: str) -> str:
    """Return the start of a stage's command; `prefix` has the fields {script} and {stage}."""
    return prefix.format(script=SCRIPTS[stage], stage=stage)


def command_for(stage: str, options: argparse.Namespace | StageOptions, **changes: object) -> str:
    """Return the command that runs `stage` with the shared ones of these options; `changes` override values."""
    values = {**vars(options), **changes}
    parts = ["-m", values["model"], "-d", values["dataset"]]
    if stage in STAGES_WITH_RANKING:
        parts += ["-f", values["fs_method"]]
    if stage in ("correct", "evaluate"):
        parts += ["-c", values["crt_method"]]
        parts += ["--crt_epoch", "0"] if values["crt_method"] == "norms" and values.get("crt_epoch") == 0 else []
        if values["crt_method"] == "patch":
            parts += ["--crt_type", values["crt_type"]]
            parts += ["--susp_ratio", str(values["susp_ratio"])] if values["susp_ratio"] is not None else []
            parts += ["--susp_side", values["susp_side"]] if values["susp_side"] != "front" else []
    parts += ["-k", str(values["k"])] if stage == "influence" else []
    parts += ["--train"] if stage == "pretrain" and values.get("bias") else []
    for name, default in {**STAGE_SETTINGS.get(stage, {}), **SHARED_SETTINGS}.items():
        if values.get(name, default) != default and (stage, name) not in IGNORED:
            parts += [f"--{OPTION_NAMES.get(name, name)}"] + ([] if values[name] is True else [str(values[name])])
    return f"{call(values['prefix'], stage)} {shlex.join(parts)}"
