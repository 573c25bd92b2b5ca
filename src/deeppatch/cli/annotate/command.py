"""annotate: choose the images of a pool whose labels repair a network best, and those that need none."""

from __future__ import annotations

import argparse

from deeppatch.artifacts import state_digest
from deeppatch.cli.annotate.encoding import encoding_of
from deeppatch.cli.annotate.options import add_selection, affordable, selection_problems
from deeppatch.cli.annotate.report import keep_filled_in, leave
from deeppatch.cli.context import open_stage
from deeppatch.cli.pool import pool_of
from deeppatch.cli.predecessors import base_model
from deeppatch.hybrid.oracle import Oracle
from deeppatch.hybrid.selection_methods import METHODS, Evidence
from deeppatch.progress import info

STAGE = "annotate"
DESCRIPTION = "Annotate: choose which images of a pool to label, within a budget, and which to learn from without."
EXAMPLE = "-m mobilenet -d cifar10 --bias B --method hybrid --budget 1%"
REPAIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    add_selection(parser)
    parser.set_defaults(problems=selection_problems)


def run(options: argparse.Namespace) -> None:
    """Choose, ask the oracle for the labels of what is chosen, and leave the selection."""
    context = open_stage(options, STAGE)
    keep_filled_in(context)
    model = base_model(context)
    pool = pool_of(context)
    budget = affordable(options.budget, len(pool))
    if context.already_finished():
        return
    encoding = encoding_of(context, pool) if options.features == "ssl" else None
    evidence = Evidence(
        model,
        pool.pixels,
        context.splits.train.pixels[:],
        options.seed,
        options.views,
        encoding.encode if encoding else None,
        options.batch_size,
        options.amp,
    )
    oracle = Oracle(pool.truth, budget)
    choice = METHODS[options.method](evidence, oracle, budget)
    found = {
        "labels_bought": oracle.spent,
        "base": state_digest(model.state_dict()),
        "encoder": encoding.facts if encoding else None,
    }
    leave(context, pool, evidence, choice, found)
    context.stage.finish()
    context.checkpoint().remove()
    spent = f"{oracle.spent} of {budget} labels {'bought' if options.bias else 'to be given'}"
    info(f"{options.method}: {spent}; written to {context.stage.folder}")
