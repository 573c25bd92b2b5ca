"""demo: run all methods on the embedded digits, and say in one line for each what was gained and what it cost.

The corrections of DeepPatch train for 2 epochs, 36 steps of 64 images, fine-tuning and patch alike, at the learning
rate that the network itself was trained with. These settings were chosen, among some that were tried, because they show
what fine-tuning can cost: after so little training it has not yet recovered what so large a learning rate has changed,
and clean accuracy falls, while the switched network leaves clean images to the original filters (results/demo.csv: they
were chosen with three seeds, and held with a fourth that was run afterwards). Digits are an easy
task for this network, and other settings show less: with half the learning rate fine-tuning lost 0.6 to 1.7 points
of clean accuracy in 2 epochs (seeds 10, 20, 2021), which 360 images cannot tell from none; at a learning rate of 0.01,
or after 15 epochs, it lost nothing and was ahead on blurred images (seed 2021). RESULTS.md has CIFAR-10, where
fine-tuning for 3 epochs at a learning rate of 0.01 costs clean accuracy.

HybridRepair is run with three seeds, the given one and the two that follow. Its network trains for 10 epochs, so that
there is something to repair: after 20 it is right on 91 to 96 % of the test images of seeds 2021 and 2022, and
relearn, held to its floor by 111 images of val, gained 0 to 2.7 points.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from deeppatch.cli import main
from deeppatch.cli.naming import model_folder, suffix
from deeppatch.cli.options import SCRIPTS, RepairOptions, call
from deeppatch.progress import info

if TYPE_CHECKING:
    from deeppatch.stage import Stage

STAGE = "demo"
DESCRIPTION = """Demo: all methods on scikit-learn's digits with a small network, in minutes on two cores.

DeepPatch's patch and fine-tuning both train for 2 epochs at the learning rate of the network's own training, 0.1. That
was chosen to show what fine-tuning can cost: trained for longer or with a smaller rate it loses little or no clean
accuracy on data as easy as these. HybridRepair is run with three seeds.
The last lines say for each method what was gained and what it cost, with intervals."""
EXAMPLE = "--output_dir output"
FREE = {"output_dir", "device", "gpu", "seed", "resume"}
MODEL = ["-m", "resnet8", "-d", "digits", "-b", "64"]
PATCH = ["-f", "featswap", "-c", "patch", "--crt_type", "replace"]
TRAINING = ["--crt_epoch", "2", "--lr", "0.1"]
CHOICE = ["--bias", "B", "--budget", "5%", "--views", "2"]
RELEARN = ["-e", "20"]
SEARCH = ["--search_images", "400", "--budget", "8", "--sensitivity_images", "20", "--lr", "0.01", "--alpha", "1"]
SEEDS = 3  # of HybridRepair
LAST_SEED = 2**31 - SEEDS
# the stages, and actions of decompose, whose metrics.json the closing lines read
REPORTED = {"evaluate", "decompose validate", "decompose finetune", "modularize", "compose", "relearn"}


class Step(NamedTuple):
    """A stage with its arguments, and what is added to the demo's seed."""

    stage: str
    arguments: list[str]
    further: int = 0


STEPS = [
    Step("pretrain", ["--train", "-e", "30", "--lr", "0.1"]),
    Step("assess", ["-f", "featswap"]),
    Step("correct", ["-c", "finetune", *TRAINING]),
    Step("correct", [*PATCH, *TRAINING]),
    Step("evaluate", PATCH),
    Step("influence", ["-k", "5", "10", "20"]),
    Step("decompose", ["validate", "-k", "5", "10", "20"]),
    Step("decompose", ["essential", "-k", "10"]),
    Step("decompose", ["mutual-info"]),
    Step("decompose", ["sweep", "-k", "5", "10", "20", "40", "64"]),
    Step("decompose", ["finetune", "-k", "10"]),
    Step("modularize", ["--no_head", *SEARCH, "--max_drop", "2"]),
    Step("compose", ["--no_head", "--weak_epoch", "2", "--join", "calibrate", "min_max", "outlier"]),
    *(
        Step(stage, arguments, further)
        for further in range(SEEDS)
        for stage, arguments in (
            ("pretrain", ["--train", "--bias", "B", "-e", "10", "--lr", "0.1"]),
            ("annotate", [*CHOICE, "--method", "random"]),
            ("relearn", [*CHOICE, "--method", "random", *RELEARN]),
            ("annotate", [*CHOICE, "--method", "hybrid"]),
            ("relearn", [*CHOICE, "--method", "hybrid", *RELEARN]),
        )
    ),
    Step("relearn", ["--bias", "B", "--compare"]),
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
    messages = [f"--{name} is fixed in the demo; run the stages one by one to choose it" for name in given]
    if LAST_SEED < options.seed < 2**31:
        messages.append(
            f"--seed {options.seed}: the demo uses the next {SEEDS - 1} seeds too; give at most {LAST_SEED}"
        )
    return messages


def run(options: Options) -> None:
    """Run the stages one after the other, as on the command line, and report what they have left."""
    start = time.monotonic()
    passed = ["--device", options.device, "--gpu", str(options.gpu), *(["-r"] if options.resume else [])]
    for step in STEPS:
        shown = words(options, step)
        print(f"\n$ {' '.join([call(options.prefix, step.stage), *shown])}", flush=True)
        main.run(SCRIPTS[step.stage], [*shown, *passed], options.prefix)
    close(options)
    seconds = time.monotonic() - start
    info(f"demo: {seconds:.0f} s in all; next: {call(options.prefix, 'pretrain')} -m resnet32 -d cifar10")


def words(options: Options, step: Step) -> list[str]:
    """Return the arguments of a step, as they are shown."""
    return [
        *MODEL,
        *step.arguments,
        "--seed",
        str(options.seed + step.further),
        "--output_dir",
        str(options.output_dir),
    ]


def close(options: Options) -> None:
    """Read what the stages have left, and print and write one line for each method."""
    from deeppatch.cli.demo.inputs import read_metrics
    from deeppatch.cli.demo.report import report

    stage = open_stage(options)
    found: dict[str, list[dict[str, object]]] = {}
    for step in STEPS:
        action = f"decompose {step.arguments[0]}" if step.stage == "decompose" else step.stage
        if action in REPORTED and "--compare" not in step.arguments:
            metrics = read_metrics(stage, step.stage, words(options, step), options.prefix)
            found.setdefault(action, []).append(metrics)
    report(stage, found)


def open_stage(options: Options) -> Stage:
    """Return the demo's own run, which leaves the closing lines."""
    from deeppatch import runtime
    from deeppatch.stage import Stage, git_revision

    facts = {
        "stage": STAGE,
        "command": options.command,
        "settings": {"seed": options.seed, "model": options.model, "dataset": options.dataset},
        "git": git_revision(),
        **runtime.describe(runtime.pick_device(options.device, options.gpu)),
    }
    stage = Stage(options.output_dir, model_folder(options) / f"{STAGE}{suffix(options)}", facts)
    stage.begin(resume=options.resume)
    return stage
