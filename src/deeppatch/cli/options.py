"""The command line that all stages share: argparse groups, checks, and how a command is spelled in a message."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from deeppatch.errors import Contradictions, UserError

DEFAULT_SEED = 2021
DEFAULT_RATIO = 0.25
DEFAULT_K = 5  # features a class
USUAL_KS = {"mutual-info": [5, 10, 20], "sweep": [5, 8, 10, 15, 20, 25, 30, 40, 50, 64]}  # of some actions of decompose
SCRIPTS = {
    "pretrain": "eval", "assess": "select", "correct": "correct", "evaluate": "switch", "export": "export",
    "demo": "demo", "influence": "influence", "decompose": "decompose", "modularize": "modularize",
    "compose": "compose", "annotate": "annotate", "relearn": "relearn",
}  # fmt: skip

# options that lead to other artifacts, with their defaults; and the pairs in which a stage must not repeat one
ELSEWHERE = {
    "noise_type": "gaussion", "seed": DEFAULT_SEED, "val_share": None, "limit": None, "weights": None, "ranking": None,
    "bias": None, "data_dir": Path("data"), "output_dir": Path("output"),
}  # fmt: skip
UNHEEDED = {("pretrain", "weights"), ("pretrain", "ranking"), ("assess", "ranking")}
# options of one stage that lead to other artifacts of it; ANNOTATE chooses the images to label
ANNOTATE = dict(method="hybrid", budget="1%", features="penultimate", encoder="resnet18", encoder_epochs=100, views=8)
OWN: dict[str, dict[str, object]] = {
    "pretrain": {"recipe": "default"}, "evaluate": {"router": "probe"},
    "modularize": {"method": "grad", "no_head": False, "preset": "auto"}, "annotate": ANNOTATE, "relearn": ANNOTATE,
}  # fmt: skip
SPELLED = {"weights": "base"}  # options whose name in the code is another one
RANKED = ("assess", "correct", "evaluate")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What every stage is told: model and data, the machine, and how it was called.

    `weights` are base weights to use in place of what pretrain left (in pretrain itself: weights to load). `defaults` are
    the values that the stage's parser gives where the command line gives none; `prefix` spells commands in messages.
    """

    model: str = "resnet32"
    dataset: str = "digits"
    weights: Path | None = None
    val_share: float | None = None
    limit: int | None = None
    data_dir: Path = Path("data")
    output_dir: Path = Path("output")
    device: str = "cpu"
    gpu: int = 0
    batch_size: int = 256
    amp: bool = False
    seed: int = DEFAULT_SEED
    resume: bool = False
    prefix: str = "python src/{script}.py"
    command: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RepairOptions(StageOptions):
    """What DeepPatch's own stages share: the degradation, the ranking, the correction and how it is trained."""

    noise_type: str = "gaussion"
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


@dataclass(frozen=True)
class Choices:
    """What the registries offer, for argparse's `choices`."""

    models: Iterable[str]
    datasets: Iterable[str]
    noises: dict[str, str]
    rankings: Iterable[str]
    corrections: Iterable[str]
    units: Iterable[str]
    sides: Iterable[str]
    default_device: str


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other one is reported: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def call(prefix: str, stage: str) -> str:
    """Return how a stage is called: `prefix` has the fields {script} and {stage}."""
    return prefix.format(script=SCRIPTS[stage], stage=stage)


def parser_for(stage: str, prefix: str, description: str, example: str) -> argparse.ArgumentParser:
    """Return the empty parser of a stage."""
    command = call(prefix, stage)
    return _Parser(
        prog=command,
        description=description,
        epilog=f"example:\n  {command} {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_shared(parser: argparse.ArgumentParser, choices: Choices, *, repair: bool = True) -> None:
    """Add the options of every stage, in groups; `repair` adds those that DeepPatch's stages share."""
    _add_data(parser, choices)
    _add_machine(parser, choices)
    if repair:
        _add_training(parser)
        _add_repair(parser, choices)


def _add_data(parser: argparse.ArgumentParser, choices: Choices) -> None:
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "-m",
        "--model",
        choices=sorted(choices.models),
        default="resnet32",
        metavar="NAME",
        help=f"network of the zoo: {', '.join(sorted(choices.models))} (default: resnet32)",
    )
    data.add_argument(
        "-d",
        "--dataset",
        default="digits",
        metavar="NAME",
        help=f"{', '.join(choices.datasets)}, or folder:PATH with PATH/{{train,test}}/CLASS/IMAGE "
        "(default: digits, which needs no download)",
    )
    data.add_argument(
        "--base",
        "--weights",
        dest="weights",
        type=Path,
        metavar="FILE",
        help="base weights to use, .safetensors or torch checkpoint (default: published, or what pretrain left)",
    )
    data.add_argument(
        "--val_share",
        type=float,
        metavar="X",
        help="share of the training part that is val (default: 1/50, up to a fifth where that is under 1,000 images)",
    )
    data.add_argument(
        "--limit", type=int, metavar="N", help="use a class-stratified subset of N images of every split (default: all)"
    )
    data.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="data sets (default: data)")
    data.add_argument(
        "--output_dir",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="artifacts of all stages (default: output)",
    )


def _add_machine(parser: argparse.ArgumentParser, choices: Choices) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default=choices.default_device,
        help=f"where to compute (default: cuda where there is one; here {choices.default_device})",
    )
    machine.add_argument("--gpu", type=int, default=0, metavar="N", help="index of the CUDA device (default: 0)")
    machine.add_argument(
        "-b", "--batch_size", type=int, default=256, metavar="N", help="images a batch (default: %(default)s)"
    )
    machine.add_argument(
        "--amp", action="store_true", help="run networks in bfloat16 where that is safe (default: float32)"
    )
    machine.add_argument(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        metavar="N",
        help=f"seed of splits, draws and training (default: {DEFAULT_SEED})",
    )
    machine.add_argument(
        "-r",
        "--resume",
        action="store_true",
        help="continue an interrupted run; the result is that of an uninterrupted one",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument(
        "--lr", type=float, default=0.01, metavar="X", help="initial learning rate of SGD (default: 0.01)"
    )
    training.add_argument("--momentum", type=float, default=0.9, metavar="X", help="momentum of SGD (default: 0.9)")
    training.add_argument("--weight_decay", type=float, default=5e-4, metavar="X", help="L2 penalty (default: 5e-4)")
    training.add_argument(
        "-e",
        "--max_epoch",
        type=int,
        default=50,
        metavar="N",
        help="epochs when pretrain trains a network (default: 50)",
    )


def _add_repair(parser: argparse.ArgumentParser, choices: Choices) -> None:
    stages = parser.add_argument_group("assess and correct")
    stages.add_argument(
        "-n",
        "--noise_type",
        type=lambda name: choices.noises.get(name, name),
        choices=sorted(set(choices.noises.values())),
        default="gaussion",
        metavar="NAME",
        help="degradation: gaussion, also called gaussian-blur (default: gaussion)",
    )
    stages.add_argument(
        "-f",
        "--fs_method",
        choices=sorted(choices.rankings),
        default="perfloss",
        help="how filters are ranked (default: perfloss)",
    )
    stages.add_argument(
        "-c",
        "--crt_method",
        choices=sorted(choices.corrections),
        default="patch",
        help="how the network is corrected (default: patch)",
    )
    stages.add_argument(
        "--crt_type",
        choices=sorted(choices.units),
        default="replace",
        help="kind of patch: new filters, or correction units behind the old ones (default: replace)",
    )
    stages.add_argument("--crt_epoch", type=int, default=20, metavar="N", help="epochs of the correction (default: 20)")
    stages.add_argument(
        "--susp_ratio",
        type=float,
        metavar="R",
        help=f"share of each layer's filters to patch, above 0 to 1 (default: {DEFAULT_RATIO}; "
        "with -f ratioestim the estimated one)",
    )
    stages.add_argument(
        "--susp_side",
        choices=list(choices.sides),
        default="front",
        help="which part of the ranking to patch (default: front, the most suspicious)",
    )
    stages.add_argument(
        "--ranking",
        type=Path,
        metavar="FILE",
        help="a ranking.json to use instead of the one assess left for these options",
    )
    stages.add_argument(
        "--patch", type=Path, metavar="FILE", help="a patch.safetensors to use instead of the one correct left"
    )
    stages.add_argument(
        "--finetuned",
        type=Path,
        metavar="FILE",
        help="a weights.safetensors of correct -c finetune to use instead of the one it left",
    )


def normalise(arguments: Sequence[str]) -> list[str]:
    """Let long options be spelled with dashes as well as with underscores."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        spelled.append("--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument)
    return spelled


def check(options: argparse.Namespace) -> None:
    """Raise Contradictions, naming all of them, when values are out of range or do not go together."""
    numbers = {name: getattr(options, name, 1) for name in ("batch_size", "max_epoch", "crt_epoch", "lr")}
    problems = [f"--{k} {v}: give a number above 0" for k, v in numbers.items() if not 0 < v < math.inf]
    if options.limit is not None and options.limit < 1:
        problems.append(f"--limit {options.limit}: give at least 1 image, or leave it out for all")
    if options.val_share is not None and not 0 < options.val_share < 1:
        problems.append(f"--val_share {options.val_share}: give a share above 0, below 1")
    if (ratio := getattr(options, "susp_ratio", None)) is not None and not 0 < ratio <= 1:
        problems.append(f"--susp_ratio {ratio}: give a share above 0, at most 1")
    if not 0 <= getattr(options, "momentum", 0) < 1:
        problems.append(f"--momentum {options.momentum}: give a number from 0 to below 1")
    if not 0 <= getattr(options, "weight_decay", 0) < math.inf:
        problems.append(f"--weight_decay {options.weight_decay}: give 0 or more")
    if options.seed < 0 or options.seed >= 2**31:
        problems.append(f"--seed {options.seed}: give a whole number from 0 to 2147483647")
    if options.device == "cpu" and options.gpu != 0:
        problems.append(f"--gpu {options.gpu} goes with --device cuda only")
    problems += getattr(options, "problems", lambda _options: [])(options)
    if problems:
        raise Contradictions(problems)


def spell(stage: str, options: argparse.Namespace, **changes: object) -> str:
    """Return the command that runs `stage` with what these options share with it; `changes` override values."""
    values = {**vars(options), **changes}
    parts = ["-m", values["model"], "-d", values["dataset"]]
    if stage in RANKED:
        parts += ["-f", values["fs_method"]]
    if stage in ("correct", "evaluate"):
        parts += ["-c", values["crt_method"]]
        if values["crt_method"] == "patch":
            parts += ["--crt_type", values["crt_type"]]
            parts += ["--susp_ratio", str(values["susp_ratio"])] if values["susp_ratio"] is not None else []
            parts += ["--susp_side", values["susp_side"]] if values["susp_side"] != "front" else []
    parts += ["-k", str(values["k"])] if stage == "influence" else []
    parts += ["--train"] if stage == "pretrain" and values.get("bias") else []
    for name, default in {**OWN.get(stage, {}), **ELSEWHERE}.items():
        if values.get(name, default) != default and (stage, name) not in UNHEEDED:
            parts += [f"--{SPELLED.get(name, name)}"] + ([] if values[name] is True else [str(values[name])])
    return f"{call(values['prefix'], stage)} {shlex.join(parts)}"
