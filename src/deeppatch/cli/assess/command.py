"""assess: rank the filters of every convolution, most suspicious first."""

from __future__ import annotations

import argparse

from deeppatch.cli.assess.ablating import exact
from deeppatch.cli.assess.estimate import estimate_ratio
from deeppatch.cli.assess.racing import raced
from deeppatch.cli.assess.refining import estimated, refined
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.methods import ESTIMATES, SCORINGS
from deeppatch.cli.predecessors import base_model
from deeppatch.cli.rankings import leave_ranking
from deeppatch.localization.ranking import Ranking, rank
from deeppatch.progress import info
from deeppatch.report import plots
from deeppatch.zoo.classifier import Classifier

STAGE = "assess"
DESCRIPTION = "Assess: rank the filters of every convolution by how much they are to blame on degraded images."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss"
RANKS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("assess")
    group.add_argument(
        "--mem",
        type=int,
        default=2048,
        metavar="MIB",
        help="memory for the maps of the images that are ranked on at a time (default: 2048 MiB)",
    )
    group.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="after an estimate (taylor, activation), ablate the N filters of each layer nearest the cut that "
        "--susp_ratio makes (default: 0)",
    )
    group.add_argument(
        "--race",
        type=float,
        metavar="DELTA",
        help="let a filter leave when it is known, but for an error probability of DELTA, on which side of that cut it "
        "lies: above 0, below 0.5 (default: every filter is scored on all images)",
    )
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = [f"--mem {options.mem}: give at least 1 MiB"] if options.mem < 1 else []
    if options.refine < 0:
        found.append(f"--refine {options.refine}: give 0 or more filters")
    if options.refine and options.fs_method not in ESTIMATES:
        found.append(f"--refine goes with -f {' and '.join(ESTIMATES)}, not with {options.fs_method}")
    if options.race is not None and not 0 < options.race < 0.5:
        found.append(f"--race {options.race}: give a probability above 0, below 0.5")
    if options.race is not None and options.fs_method not in SCORINGS:
        found.append(f"--race goes with -f {' and '.join(SCORINGS)}, not with {options.fs_method}")
    if (options.race is not None or options.refine) and options.susp_side == "random":
        found.append("--susp_side random makes no cut in a ranking: leave out --race and --refine")
    return found


def run(options: argparse.Namespace) -> None:
    """Rank with the method that -f names and leave ranking, table and plot."""
    context = open_stage(options, STAGE)
    model = base_model(context)
    if options.fs_method == "ratioestim":
        estimate_ratio(context, model)
    elif not context.already_finished():
        facts: dict[str, object] = {}
        if options.race is not None:
            ranking, facts = raced(context, model, SCORINGS[options.fs_method])
        elif options.fs_method in SCORINGS:
            method = SCORINGS[options.fs_method]
            ranking = rank(options.fs_method, exact(context, model, method), descending=method.descending)
        else:
            ranking = estimated(context, model)
            if options.refine:
                ranking, facts = refined(context, model, ranking)
        leave(context, model, ranking, facts)


def leave(context: Context, model: Classifier, ranking: Ranking, facts: dict[str, object]) -> None:
    """Write the ranking, its plot and the record."""
    options, images = context.options, len(context.splits.val)
    degraded = images * (1 if options.fs_method in ("featswap", "activation") else len(context.sigmas))
    leave_ranking(context, model, ranking, {"val_images": images, "degraded_images": degraded, **facts})
    title = f"{options.fs_method}, {options.model} on {context.source.name}, {degraded} degraded images"
    if options.fs_method in ESTIMATES:
        _, unit, against = ESTIMATES[options.fs_method]
        scores = ranking.scores
    else:
        unit, against = "points", SCORINGS[options.fs_method]
        scores = {name: [100 * value for value in row] for name, row in ranking.scores.items()}
    context.stage.write("suspicion.png", plots.suspicion(scores, unit, title, descending=against.descending))
    context.stage.finish()
    context.checkpoint().remove()
    info(f"ranked; written to {context.stage.folder}")
