"""evaluate: fit a router, route the test images, and compare with the other networks."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeppatch.cli.arguments import Suggestions
from deeppatch.cli.declared import DEGRADATION_FILES, Folder
from deeppatch.cli.options import RepairOptions
from deeppatch.errors import closest
from deeppatch.patching.names import GIVEN, ROUTERS

if TYPE_CHECKING:
    from deeppatch.data.corruptions import Corruption
    from deeppatch.patching.comparison import Comparison

STAGE = "evaluate"
DESCRIPTION = "Evaluate: route each sample to the original or the corrected network, and compare with the others."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
ARTIFACTS = (
    Folder(
        "switch-CORRECTION-ROUTER[-batch]",
        "the router, and all networks compared on test",
        {
            "router.safetensors": "the fitted router",
            "metrics.json": "accuracy of each network by view, repair and break rates, routing, and the calibration",
            "metrics.csv": "accuracies, repair and break rates as a table",
            "router.csv": "AUROC and wrongly routed samples of each view",
            "accuracy.png": "a plot of accuracy against blur, a curve for each network",
        },
        {
            **DEGRADATION_FILES,
            "neighbours.csv": "shares of right neighbours of each network by severity, with `--neighbours`",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of evaluate: the router, what it is calibrated on, what is routed, and the bounds that it keeps.

    A file that `router` names becomes `router_file`, and the router `file`.
    """

    router: str = "probe"
    router_file: Path | None = None
    switch: str = "sample"
    max_clean_drop: float = 0.1
    max_flips: float | None = None
    calibrate_on: str = "val"
    alarm: float | None = None
    experts: list[Path] | None = None
    neighbours: int | None = None

    def __post_init__(self) -> None:
        """Tell names of routers from files."""
        if self.router not in (*ROUTERS, GIVEN):
            object.__setattr__(self, "router_file", self.router_file or Path(self.router))
        if self.router_file is not None:
            object.__setattr__(self, "router", GIVEN)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("evaluate")
    group.add_argument(
        "--router",
        type=_router,
        choices=Suggestions(sorted(ROUTERS)),
        default="probe",
        metavar="NAME",
        help="probe, a logistic regression of clean against degraded on the first maps; flips, as published; benefit, "
        "a regression of which network is right; benefit-both, the same on the answers of all networks, too, which all "
        "run for every sample; average, which averages their probabilities; or a router.safetensors (default: probe)",
    )
    group.add_argument(
        "--router_file",
        type=Path,
        metavar="FILE",
        help="a router.safetensors of an earlier run to use as it is; images are only tested then, and a folder of "
        "images needs no training part",
    )
    group.add_argument(
        "--switch",
        choices=["sample", "batch"],
        default="sample",
        help="one decision for each sample, or the published majority vote of a batch (default: sample)",
    )
    group.add_argument(
        "--max_clean_drop",
        type=float,
        default=0.1,
        metavar="P",
        help="bound on the loss of clean accuracy, in points, shown on the calibration images with 95 %% confidence; "
        "flips keeps none (default: 0.1)",
    )
    group.add_argument(
        "--max_flips",
        type=float,
        metavar="P",
        help="bound on newly wrong images, in percent of a stream of which half is degraded, shown together with the "
        "other bound (default: none)",
    )
    group.add_argument(
        "--calibrate_on",
        default="val",
        metavar="WHAT",
        help="images to calibrate on: val; test:N, N test images, of which no result is reported; or folder:PATH with "
        "PATH/CLASS/IMAGE. Bounds hold only for images that the network has not been trained on (default: val)",
    )
    group.add_argument(
        "--alarm",
        type=float,
        metavar="RATE",
        help="let the original network answer samples that resemble nothing in the calibration, and count them, at "
        "this rate of false alarms, above 0 and below 1 (default: none are told)",
    )
    group.add_argument(
        "--experts",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="further patches or networks that correct left for the same base, between which the router chooses, too",
    )
    group.add_argument(
        "--neighbours",
        "--num_neighbors",
        type=int,
        metavar="N",
        help="with -n spatial: measure also N versions of each test image at each severity, the share of right ones "
        "and the share of images of which all are right; published are 50 (default: none)",
    )


def _router(text: str) -> str:
    """Accept the name of a router or the path of a file, as argparse wants it."""
    if text in ROUTERS or os.sep in text or text.endswith(".safetensors"):
        return text
    known = f"choose from {', '.join(ROUTERS)}, or give a router.safetensors"
    raise argparse.ArgumentTypeError(f"invalid choice: {text}{closest(text, ROUTERS)}; {known}")


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = []
    if not 0 <= options.max_clean_drop <= 100:
        messages.append(f"--max_clean_drop {options.max_clean_drop}: give points from 0 to 100")
    if options.max_flips is not None and not 0 <= options.max_flips <= 100:
        messages.append(f"--max_flips {options.max_flips}: give a percentage from 0 to 100")
    if options.max_flips is not None and options.router == "flips":
        messages.append("--max_flips: the router flips has the published boundary, which no bound moves")
    if options.alarm is not None and not 0 < options.alarm < 1:
        messages.append(f"--alarm {options.alarm}: give a rate of false alarms above 0, below 1")
    kind, _, detail = options.calibrate_on.partition(":")
    if not (options.calibrate_on == "val" or kind == "folder" and detail or kind == "test" and _counts(detail)):
        messages.append(f"--calibrate_on {options.calibrate_on}: give val, test:N or folder:PATH")
    if options.router_file is not None and (
        options.calibrate_on != "val" or options.alarm is not None or options.max_flips is not None
    ):
        messages.append("--router_file: the router is used as it is; leave out --calibrate_on, --alarm and --max_flips")
    if options.neighbours is not None and options.neighbours < 1:
        messages.append(f"--neighbours {options.neighbours}: give at least 1")
    if options.neighbours is not None and options.noise_type != "spatial":
        messages.append("--neighbours can only be used with -n spatial, which draws other versions of an image")
    if options.experts and options.router in ("probe", "flips"):
        messages.append(f"--experts: the router {options.router} decides between two networks; use benefit-both")
    return messages


def _counts(text: str) -> bool:
    return text.isdecimal() and int(text) > 1


def completed(options: Options) -> Options:
    """Return the options with the base weights of a given patch, where a router is used as it is."""
    if options.router_file is None:
        return options
    from deeppatch.cli.evaluate.field_images import with_base

    found: Options = with_base(options)
    return found


def run(options: Options) -> None:
    """Calibrate the router, evaluate all networks on test, and write router, metrics, tables and plot."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.evaluate import inputs
    from deeppatch.cli.evaluate.field_images import only_test
    from deeppatch.cli.evaluate.report import Results, write_report
    from deeppatch.cli.predecessors import base_model
    from deeppatch.patching.comparison import compare_networks

    context = open_stage(options, STAGE)
    if options.router_file is not None:
        only_test(context)
    model = base_model(context)
    corrections = inputs.corrections(context, model)
    tuned = inputs.finetuned_to_compare(context, model)
    if context.already_finished():
        return
    data, calibrate = inputs.calibration_images(context)
    batches: dict[str, Any] = {"batch_size": options.batch_size, "amp": options.amp}
    switched, seen = inputs.switched_model(context, model, corrections, data, calibrate)

    def compared(degrade: Corruption) -> Comparison:
        return compare_networks(
            model, corrections, switched, data, degrade, finetuned=tuned, seed=options.seed, **batches
        )

    comparison = compared(context.corruption)
    unseen = None if context.held_out is None else compared(context.held_out)
    near = inputs.neighbours(context, model, corrections, switched, tuned) if options.neighbours else None
    write_report(context, Results(comparison, unseen, switched, seen, near))
