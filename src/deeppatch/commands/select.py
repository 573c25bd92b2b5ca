"""assess: rank the filters of every convolution, most suspicious first."""

from __future__ import annotations

import argparse
import dataclasses

from deeppatch import options as command_line
from deeppatch.artifacts import state_digest
from deeppatch.blame.ablation import Counts, count
from deeppatch.blame.ranking import rank
from deeppatch.commands.ablating import degraded_view, engine, every_second, samples
from deeppatch.commands.context import Context, open_stage
from deeppatch.commands.estimate import estimate_ratio
from deeppatch.commands.methods import SCORINGS
from deeppatch.commands.models import base_model
from deeppatch.commands.rankings import leave_ranking
from deeppatch.progress import counting, info
from deeppatch.report import plots
from deeppatch.surgery import convolutions
from deeppatch.zoo.classifier import Classifier

STAGE = "assess"
DESCRIPTION = "Assess: rank the filters of every convolution by how much they are to blame on degraded images."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("assess")
    group.add_argument(
        "--mem", type=int, default=2048, metavar="MIB",
        help="memory for the maps of the images that are ranked on at a time (default: 2048 MiB)",
    )  # fmt: skip
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    return [f"--mem {options.mem}: give at least 1 MiB"] if options.mem < 1 else []


def run(options: argparse.Namespace) -> None:
    """Rank with the method that -f names and leave ranking, table and plot."""
    context = open_stage(options, command_line.assess_name(options))
    model = base_model(context)
    if options.fs_method == "ratioestim":
        estimate_ratio(context, model)
    elif not context.already_finished():
        score_filters(context, model)


def score_filters(context: Context, model: Classifier) -> None:
    """Score every filter on val; an interruption loses seconds."""
    options, network = context.options, model.network
    method = SCORINGS[options.fs_method]
    widths = {name: conv.out_channels for name, conv in convolutions(network).items()}
    ablation, costs, per_image = engine(context, model, method)
    size = max(1, min(options.batch_size, options.mem * 2**20 // per_image))
    view = degraded_view(context, method, size)
    checkpoint = context.checkpoint(base=state_digest(model.state_dict()))
    counts = Counts(**(checkpoint.load() or {}))
    info(f"{options.fs_method}: {sum(widths.values())} filters in {len(widths)} layers, {len(view.labels)} degraded "
         f"val images each, {size} at a time")  # fmt: skip
    whole = sum(widths[name] * costs[name] for name in widths)
    done = counts.samples * whole + sum(len(row) * costs[name] for name, row in counts.right_now.items())
    keep = every_second(lambda: checkpoint.save(dataclasses.asdict(counts)))
    with counting(len(view) * whole, options.fs_method, done) as tick:
        count(samples(model, method, view), widths, ablation, counts, keep, lambda name: tick(costs[name]))
    ranking = rank(options.fs_method, counts.scores(method.sign), descending=method.descending)
    leave_ranking(context, model, ranking, {"val_images": len(context.splits.val), "degraded_images": len(view.labels)})
    title = f"{options.fs_method}, {options.model} on {context.source.name}, {len(view.labels)} degraded images"
    context.stage.write("suspicion.png", plots.suspicion(ranking.scores, options.fs_method, title))
    context.stage.finish()
    checkpoint.remove()
    info(f"ranked; written to {context.stage.folder}")
