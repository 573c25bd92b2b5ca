"""evaluate: fit a router on val, route the test images, and compare with the other networks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeppatch.cli.declared import DEGRADATION_FILES, Folder
from deeppatch.cli.options import RepairOptions
from deeppatch.patching.names import ROUTERS

if TYPE_CHECKING:
    from deeppatch.data.corruptions import Corruption
    from deeppatch.patching.comparison import Comparison

STAGE = "evaluate"
DESCRIPTION = "Evaluate: route each sample to the original or the patched maps, and compare with the other networks."
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
        DEGRADATION_FILES,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of evaluate: the router, what is routed, and the bound on the loss of clean accuracy."""

    router: str = "probe"
    switch: str = "sample"
    max_clean_drop: float = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("evaluate")
    group.add_argument(
        "--router",
        choices=sorted(ROUTERS),
        default="probe",
        help="router: probe, a logistic regression on the first maps, or flips, as published (default: probe)",
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
        help="probe: bound on the loss of clean accuracy, in points, shown on val with 95 %% confidence (default: 0.1)",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = []
    if options.crt_method != "patch":
        messages.append(
            f"-c {options.crt_method} cannot be switched: use -c patch; a fine-tuned network is compared anyway"
        )
    if not 0 <= options.max_clean_drop <= 100:
        messages.append(f"--max_clean_drop {options.max_clean_drop}: give points from 0 to 100")
    return messages


def run(options: Options) -> None:
    """Calibrate the router, evaluate all networks on test, and write router, metrics, tables and plot."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.evaluate.inputs import finetuned_if_there
    from deeppatch.cli.evaluate.report import show_calibration, write_report
    from deeppatch.cli.predecessors import base_model, load_patch
    from deeppatch.patching.calibration import fit_switch
    from deeppatch.patching.comparison import compare_networks

    context = open_stage(options, STAGE)
    model = base_model(context)
    patch = load_patch(context, model)
    tuned = finetuned_if_there(context, model)
    if context.already_finished():
        return
    batches: dict[str, Any] = {"batch_size": options.batch_size, "amp": options.amp}
    switched = fit_switch(
        model,
        patch,
        context.data,
        context.corruption,
        router=options.router,
        max_clean_drop=options.max_clean_drop,
        vote=options.switch == "batch",
        **batches,
    )
    show_calibration(switched.calibration)

    def compared(degrade: Corruption) -> Comparison:
        return compare_networks(
            model, patch, switched, context.data, degrade, finetuned=tuned, seed=options.seed, **batches
        )

    comparison = compared(context.corruption)
    unseen = None if context.held_out is None else compared(context.held_out)
    write_report(context, comparison, switched, unseen)
