"""evaluate: fit a router on val, switch on the fly on test, and compare with every other network at hand."""

from __future__ import annotations

import argparse
import contextlib

from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.evaluate.answers import answer, answer_switched, oracle
from deeppatch.cli.evaluate.calibrate import calibrate
from deeppatch.cli.evaluate.report import write_report
from deeppatch.cli.predecessors import base_model, load_finetuned, load_patch, patched_copy
from deeppatch.errors import MissingArtifact, OtherBase
from deeppatch.patching.router import ROUTERS
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier

STAGE = "evaluate"
DESCRIPTION = "Evaluate: route each sample to the original or the patched maps, and compare with the other networks."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("evaluate")
    group.add_argument(
        "--router",
        choices=sorted(ROUTERS),
        default="probe",
        help="what decides: probe, a logistic regression on the first maps, or flips, as published (default: probe)",
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
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.crt_method != "patch":
        found.append(f"-c {options.crt_method} cannot be switched: use -c patch; what finetune left is compared anyway")
    if not 0 <= options.max_clean_drop <= 100:
        found.append(f"--max_clean_drop {options.max_clean_drop}: give points from 0 to 100")
    return found


def run(options: argparse.Namespace) -> None:
    """Calibrate the router, evaluate everything on test, and leave router, metrics, table and plot."""
    context = open_stage(options, STAGE)
    model = base_model(context)
    patch = load_patch(context, model)
    tuned = finetuned_if_there(context, model)
    if context.already_finished():
        return
    switched = SwitchedModel(model, patch, context.example)
    switched.vote = options.switch == "batch"
    patched = patched_copy(context, model, patch)
    switched.router, calibration = calibrate(context, model, patched, switched)

    networks = {"pretrained": model, "finetuned": tuned, "patched always on": patched}
    answers = {name: answer(context, network, name) for name, network in networks.items() if network is not None}
    answers["switched"], routing = answer_switched(context, switched)
    answers["oracle router"] = oracle(context, answers["pretrained"], answers["patched always on"])
    write_report(context, answers, routing, calibration)
    context.stage.write("router.safetensors", switched.router.to_bytes())
    context.stage.finish()
    info(f"accuracy in percent on {len(context.splits.test)} test images; written to {context.stage.folder}")


def finetuned_if_there(context: Context, model: Classifier) -> Classifier | None:
    """Return the fine-tuned network where correct has left one for this model, else None."""
    with contextlib.suppress(MissingArtifact, OtherBase):
        return load_finetuned(context, model)
    info(f"no fine-tuned network to compare with; make one with: {context.command('correct', crt_method='finetune')}")
    return None
