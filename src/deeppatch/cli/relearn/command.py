"""relearn: repair a network with the labels that annotate chose and the pool's unlabelled images."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from deeppatch.artifacts import state_digest
from deeppatch.cli.annotate.options import add_selection, selection_problems
from deeppatch.cli.context import open_stage
from deeppatch.cli.decompose.tuning import view_accuracy
from deeppatch.cli.pool import pool_of
from deeppatch.cli.predecessors import base_model
from deeppatch.cli.relearn.comparing import compare
from deeppatch.cli.relearn.inputs import load_selection, material_of
from deeppatch.cli.relearn.report import report
from deeppatch.cli.relearn.starting import finetuned, training_options
from deeppatch.hybrid.semisupervised import repair
from deeppatch.hybrid.training_data import USES, Recipe

STAGE = "relearn"
DESCRIPTION = "Relearn: repair a network with the labels that annotate chose and, in HybridRepair, unlabelled images."
EXAMPLE = "-m mobilenet -d cifar10 --bias B --method hybrid --budget 1%"
REPAIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone, and those that name annotate's folder."""
    add_selection(parser)
    group = parser.add_argument_group("relearn")
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="the label file that annotate left, filled in (default: as bought)"
    )
    group.add_argument(
        "--use",
        choices=USES,
        default="both",
        help="labels: the supervised phase alone; unlabelled: guesses alone, no label (default: both)",
    )
    group.add_argument("-e", "--epochs", type=int, default=10, metavar="N", help="epochs (default: 10)")
    group.add_argument("--lr", type=float, default=1e-3, metavar="X", help="learning rate of SGD (default: 1e-3)")
    group.add_argument("--steps", type=int, metavar="N", help="batches a phase at most, for CPUs (default: all)")
    group.add_argument(
        "--ramp",
        type=int,
        default=0,
        metavar="N",
        help="epochs over which the weight of guesses grows to 100 (default: 0, as published: whole from the start)",
    )
    group.add_argument(
        "--compare", action="store_true", help="train nothing: compare all runs of this model, over methods and seeds"
    )
    group.add_argument(
        "--selection", type=Path, metavar="FILE", help="a selection.safetensors to use instead of the one annotate left"
    )
    parser.set_defaults(problems=problems, batch_size=64)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = selection_problems(options)
    found += [f"--epochs {options.epochs}: give at least 1"] * (options.epochs < 1)
    found += [f"--steps {options.steps}: give at least 1"] * (options.steps is not None and options.steps < 1)
    found += [f"--ramp {options.ramp}: give 0 or more"] * (options.ramp < 0)
    if options.labels is not None:
        found += ["--labels goes with --use both or labels"] * (options.use == "unlabelled")
        found += ["--labels goes with images of your own: with --bias an oracle has the labels"] * bool(options.bias)
    return found


def run(options: argparse.Namespace) -> None:
    """Fine-tune (or find what an earlier run fine-tuned), repair, and report; or compare what earlier runs left."""
    if options.compare:
        compare(options)
        return
    context = open_stage(options, STAGE)
    model = base_model(context)
    pool = pool_of(context)
    selection = load_selection(context, model, pool)
    if context.already_finished():
        return
    material = material_of(context, selection, pool)
    recipe = Recipe(batch=options.batch_size, ramp=options.ramp, steps=options.steps)
    start = finetuned(context, model, material, recipe)
    repaired = copy.deepcopy(start)
    on_test = view_accuracy(context, context.splits.test)
    history = repair(
        repaired,
        material,
        recipe,
        options.epochs,
        view_accuracy(context, context.splits.val),
        watch=lambda trained: {"test": on_test(trained)},
        label="relearn",
        checkpoint=context.checkpoint(
            start=state_digest(start.state_dict()),
            selection=state_digest(
                {
                    "known": material.known,
                    "weights": material.weights,
                }
            ),
        ),
        **training_options(context),
    )
    report(context, selection, [model, start, repaired], history)
    context.stage.finish()
    context.checkpoint().remove()
