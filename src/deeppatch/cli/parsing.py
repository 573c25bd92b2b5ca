"""Parse and check the arguments of a command without importing torch."""

from __future__ import annotations

import argparse
import importlib
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import deeppatch
from deeppatch.cli.arguments import add_names, add_shared
from deeppatch.cli.corrections import estimates_only, problems_of_published_patch
from deeppatch.cli.options import StageOptions, call
from deeppatch.data import corruption_names, names
from deeppatch.errors import Contradictions, UserError, closest
from deeppatch.retrain.names import STATISTICS_OF_PATCH
from deeppatch.storage import read_given, sha256

MAX_IMAGE_SIZE = 4096  # pixels
# the option of each stage that trains for which --epochs is another name
EPOCHS = {
    "pretrain": "max_epoch", "assess": "crt_epoch", "correct": "crt_epoch", "decompose": "max_epoch",
    "compose": "weak_epoch", "modularize": "budget", "annotate": "encoder_epochs", "relearn": "epochs",
}  # fmt: skip
# options of published scripts that are called or given otherwise here
PUBLISHED = {
    "--tao": " (--tau X here, in shares of log C)",
    "--auto_tao": " (--tau auto here)",
    "--avg_tao": " (--tau mean here)",
    "--u_weight": " (--pool_weights and --pseudo_weight here)",
    "--disable_dynamic_u_weight": " (--pool_weights fixed here)",
}
OUTPUT_FOLDERS = {"data_dir", "output_dir"}  # every other path that an option names must exist


class StageParser(argparse.ArgumentParser):
    """A parser that reports mistakes as a UserError: one line, without the usage, with a suggestion."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and the command that shows help."""
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the options; UserError for unknown arguments, with the option that resembles them."""
        for word in args or []:
            if word.startswith("--") and word.endswith("=--"):  # argparse takes the value for the end of the options
                self.error(f"argument {word.removesuffix('=--')}: expected one argument, not --")
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            hint = PUBLISHED.get(flag) or closest(flag, self._option_string_actions)
            if not flag and unknown[0].partition(":")[0] in names.DATASET_NAMES:
                hint = " (join the classes of several data sets with +)"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"invalid choice: {value}{closest(str(value), known)}; choose from {', '.join(known)}"
            )


def parse(module: ModuleType, arguments: Sequence[str], prefix: str) -> Any:
    """Parse and check the arguments of a command module, and return its `Options`.

    A command module has STAGE, DESCRIPTION, EXAMPLE, `Options`, `add_arguments(parser)`, `run(options)`, and where it
    needs them `problems(options)`, which returns contradictions, and `preset(options)`, which returns the defaults
    that an option sets in place of the usual ones. `completed(options)` returns the options with what files say that
    they name. REPAIR = False omits the options that only DeepPatch's stages
    share.
    """
    parser = parser_of(module, prefix)
    if any("\0" in word for word in arguments):
        raise UserError("an argument has a NUL character, which no path and no name can have; check the command")
    words = normalise(arguments)
    given = parser.parse_args(words)
    if hasattr(module, "preset"):
        parser.set_defaults(**module.preset(given))
        given = parser.parse_args(words)
    values = dict(vars(given))
    published = values.pop("published_patch", None)
    typed = [word for word in arguments if word not in ("-r", "--resume")]  # a resumed run leaves the same bytes
    values |= {
        "prefix": prefix,
        "command": f"{parser.prog} {shlex.join(typed)}".strip(),
        "defaults": {name: parser.get_default(name) for name in values},
    }
    if (splits := values.get("splits")) and splits.is_file():  # a file that is not there is told by `check_files`
        values["split_digest"] = sha256(read_given(splits))[:12]
    options = module.Options(**values)
    own = getattr(module, "problems", None)
    check(options, lambda found: problems_of_published_patch(published, found) + (own(found) if own else []))
    names.check_name(options.dataset)
    return options


def parse_stage(stage: str, arguments: Sequence[str], prefix: str) -> Any:
    """Parse and check the arguments of a stage, and return its `Options`."""
    return parse(importlib.import_module(f"deeppatch.cli.{stage}.command"), arguments, prefix)


def parser_of(module: ModuleType, prefix: str) -> argparse.ArgumentParser:
    """Return the parser of a command module."""
    parser = parser_for(module.STAGE, prefix, module.DESCRIPTION, module.EXAMPLE)
    add_options(parser, module)
    return parser


def add_options(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """Add all options of a command module to a parser."""
    add_shared(parser, repair=getattr(module, "REPAIR", True))
    module.add_arguments(parser)
    if module.STAGE in EPOCHS and "--epochs" not in parser._option_string_actions:
        add_names(parser, EPOCHS[module.STAGE], "--epochs")


def parser_for(stage: str, prefix: str, description: str, example: str) -> argparse.ArgumentParser:
    """Return the parser of a stage, without its options."""
    command = call(prefix, stage)
    parser = StageParser(
        prog=command,
        description=description,
        epilog=f"example:\n  {command} {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"deeppatch {deeppatch.__version__}", help="show the version and exit"
    )
    return parser


def check_files(options: StageOptions) -> None:
    """Raise UserError when a file or an image folder that an option names does not exist."""
    for name, value in vars(options).items():
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(path, Path) and name not in OUTPUT_FOLDERS and not path.exists():
                raise UserError(f"{path}: No such file or directory; check the path")
    for name in corruption_names.parse(getattr(options, "noise_type", corruption_names.DEFAULT)).own:
        kind, _, path = name.partition(":")
        if not corruption_names.is_function(name) and not Path(path).expanduser().is_dir():
            raise UserError(f"{path}: no such folder; --noise_type {kind}:PATH names one of degraded images")
    if not getattr(options, "router_file", None):  # else the images are only tested, and need no training part
        names.check_path(options.dataset)


def normalise(arguments: Sequence[str]) -> list[str]:
    """Replace dashes in long options by underscores, so that both spellings are accepted."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        spelled.append("--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument)
    return spelled


def check(options: StageOptions, own: Callable[[Any], list[str]] | None = None) -> None:
    """Raise Contradictions with all problems when values are out of range or contradict each other.

    `own` returns the problems with the stage's own options.
    """
    numbers = {name: getattr(options, name, 1) for name in ("batch_size", "max_epoch", "crt_epoch", "lr")}
    if estimates_only(options):
        del numbers["crt_epoch"]  # their statistics are estimated again, and nothing is trained
    problems = [f"--{k} {v}: give a number above 0" for k, v in numbers.items() if not 0 < v < math.inf]
    problems += _problems_of_data(options)
    if (ratio := getattr(options, "susp_ratio", None)) is not None and not 0 < ratio <= 1:
        problems.append(f"--susp_ratio {ratio}: give a share above 0, at most 1")
    if not 0 <= (momentum := getattr(options, "momentum", 0)) < 1:
        problems.append(f"--momentum {momentum}: give a number from 0 to below 1")
    if not 0 <= (decay := getattr(options, "weight_decay", 0)) < math.inf:
        problems.append(f"--weight_decay {decay}: give 0 or more")
    if options.seed < 0 or options.seed >= 2**31:
        problems.append(f"--seed {options.seed}: give a whole number from 0 to 2147483647")
    if options.device == "cpu" and options.gpu != 0:
        problems.append(f"--gpu {options.gpu} can only be used with --device cuda")
    if getattr(options, "crt_method", None) == STATISTICS_OF_PATCH and not hasattr(options, "unlabelled"):
        problems.append(f"-c {STATISTICS_OF_PATCH} leaves a patch like any other: use -c patch --patch FILE")
    problems += _problems_of_degradations(options)
    problems += own(options) if own else []
    if problems:
        raise Contradictions(problems)


def _problems_of_data(options: StageOptions) -> list[str]:
    """Return what is wrong with the numbers and sizes of images."""
    limit, size, share = options.limit, options.image_size, options.val_share
    problems = []
    if limit is not None and limit < 1:
        problems.append(f"--limit {limit}: give at least 1 image, or leave it out for all")
    if size is not None and not 1 <= size <= MAX_IMAGE_SIZE:
        problems.append(f"--image_size {size}: give a whole number of pixels from 1 to {MAX_IMAGE_SIZE}")
    if share is not None and not 0 < share < 1:
        problems.append(f"--val_share {share}: give a share above 0, below 1")
    return problems


def _problems_of_degradations(options: StageOptions) -> list[str]:
    """Return the contradictions between the degradations, their severities and those that are held out."""
    noise, severity = getattr(options, "noise_type", ""), getattr(options, "severity", None)
    problems = []
    if severity is not None and not corruption_names.has_severities(noise):
        problems.append(f"--severity {severity}: {noise} has no severities")
    if (held_out := getattr(options, "hold_out", None)) is not None:
        try:
            corruption_names.parse(noise).without(held_out)
        except UserError as error:
            problems.append(f"--hold_out {held_out}: {error}")
    return problems
