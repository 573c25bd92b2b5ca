"""demo: run all methods on the embedded digits; the last table shows gains and costs of DeepPatch."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from deeppatch.cli import main
from deeppatch.cli.options import SCRIPTS, RepairOptions, call
from deeppatch.progress import info

STAGE = "demo"
DESCRIPTION = "Demo: all methods on scikit-learn's digits with a small network, in minutes on two cores."
EXAMPLE = "--output_dir output"
FREE = {"output_dir", "device", "gpu", "seed", "resume"}
MODEL = ["-m", "resnet8", "-d", "digits", "-b", "64"]
PATCH = ["-f", "featswap", "-c", "patch", "--crt_type", "replace"]
TRAINING = ["--crt_epoch", "15", "--lr", "0.05"]
CHOICE = ["--bias", "B", "--budget", "5%", "--views", "2"]
RELEARN = ["-e", "4", "--steps", "6"]
SEARCH = ["--search_images", "400", "--budget", "8", "--sensitivity_images", "20", "--lr", "0.01", "--alpha", "1"]
STEPS = [
    ("pretrain", ["--train", "-e", "30", "--lr", "0.1"]),
    ("influence", ["-k", "5", "10", "20"]),
    ("decompose", ["validate", "-k", "5", "10", "20"]),
    ("decompose", ["essential", "-k", "10"]),
    ("decompose", ["mutual-info"]),
    ("decompose", ["sweep", "-k", "5", "10", "20", "40", "64"]),
    ("decompose", ["finetune", "-k", "10"]),
    ("modularize", ["--no_head", *SEARCH, "--max_drop", "2"]),
    ("compose", ["--no_head", "--weak_epoch", "2", "--join", "calibrate", "min_max", "outlier"]),
    ("pretrain", ["--train", "--bias", "B", "-e", "20", "--lr", "0.1"]),
    ("annotate", [*CHOICE, "--method", "random"]),
    ("relearn", [*CHOICE, "--method", "random", *RELEARN]),
    ("annotate", [*CHOICE, "--method", "hybrid"]),
    ("relearn", [*CHOICE, "--method", "hybrid", *RELEARN]),
    ("relearn", ["--bias", "B", "--compare"]),
    ("assess", ["-f", "featswap"]),
    ("correct", ["-c", "finetune", *TRAINING]),
    ("correct", [*PATCH, *TRAINING]),
    ("evaluate", PATCH),
]


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of the demo: the shared ones, of which only those in FREE may differ from their defaults."""

    model: str = "resnet8"
    batch_size: int = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set the network and data of the demo, and hide the options that would change them."""
    for action in parser._actions:
        action.help = action.help if action.dest in FREE | {"help", "version"} else argparse.SUPPRESS
    parser.set_defaults(model=Options.model, dataset=Options.dataset, batch_size=Options.batch_size)


def problems(options: Options) -> list[str]:
    """Return the options that the demo does not accept."""
    given = [
        name for name, default in options.defaults.items() if name not in FREE and getattr(options, name) != default
    ]
    return [f"--{name} is fixed in the demo; run the stages one by one to choose it" for name in given]


def run(options: Options) -> None:
    """Run the stages one after the other, as on the command line."""
    start = time.monotonic()
    passed = ["--device", options.device, "--gpu", str(options.gpu), *(["-r"] if options.resume else [])]
    shown = ["--seed", str(options.seed), "--output_dir", str(options.output_dir)]
    for stage, arguments in STEPS:
        print(f"\n$ {' '.join([call(options.prefix, stage), *MODEL, *arguments, *shown])}", flush=True)
        main.run(SCRIPTS[stage], [*MODEL, *arguments, *shown, *passed], options.prefix)
    seconds = time.monotonic() - start
    info(f"demo: {seconds:.0f} s in all; next: {call(options.prefix, 'pretrain')} -m resnet32 -d cifar10")
