"""assess: rank the filters of every convolution, most suspicious first."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import DEFAULT_RATIO, RepairOptions
from deeppatch.localization.names import ESTIMATED_METHODS, EXACT_METHODS

if TYPE_CHECKING:
    from torch import nn

    from deeppatch.cli.context import Context
    from deeppatch.zoo.classifier import Classifier

STAGE = "assess"
DESCRIPTION = "Assess: rank the filters of every convolution by how far they cause failures on degraded images."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss"
RANKS = True
ARTIFACTS = (
    Folder(
        "assess-ratioestim[-KIND][-SIDE]",
        "the share of filters to patch, estimated by training patches at nine shares",
        {
            "ranking.json": "filters of each convolution, most suspicious first, their scores, and the estimated share",
            "ranking.csv": "the ranking as a table",
            "curve.csv": "accuracy on val against the share of filters",
            "curve.png": "a plot of that curve",
        },
    ),
    Folder(
        "assess-METHOD",
        "a ranking of filters",
        {
            "ranking.json": "the filters of each convolution, most suspicious first, and their scores",
            "ranking.csv": "the ranking as a table",
            "suspicion.png": "a plot of the scores by layer",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of assess: memory for feature maps in MiB, filters to refine, error probability of elimination."""

    mem: int = 2048
    refine: int = 0
    race: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("assess")
    group.add_argument(
        "--mem",
        type=int,
        default=Options.mem,
        metavar="MIB",
        help="memory for the feature maps of a batch of images (default: 2048 MiB)",
    )
    group.add_argument(
        "--refine",
        type=int,
        default=Options.refine,
        metavar="N",
        help="after an estimate (taylor, activation), ablate the N filters of each layer nearest the cut that "
        "--susp_ratio makes (default: 0)",
    )
    group.add_argument(
        "--race",
        type=float,
        metavar="DELTA",
        help="successive elimination: stop evaluating a filter once it is known, with error probability DELTA, "
        "on which side of that cut it is: above 0, below 0.5 (default: every filter is scored on all images)",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = [f"--mem {options.mem}: give at least 1 MiB"] if options.mem < 1 else []
    if options.fs_method == "random":
        messages.append("-f random draws filters without a ranking: run correct -f random")
    if options.refine < 0:
        messages.append(f"--refine {options.refine}: give 0 or more filters")
    if options.refine and options.fs_method not in ESTIMATED_METHODS:
        messages.append(
            f"--refine can only be used with -f {' and '.join(ESTIMATED_METHODS)}, not with {options.fs_method}"
        )
    if options.race is not None and not 0 < options.race < 0.5:
        messages.append(f"--race {options.race}: give a probability above 0, below 0.5")
    if options.race is not None and options.fs_method not in EXACT_METHODS:
        messages.append(f"--race can only be used with -f {' and '.join(EXACT_METHODS)}, not with {options.fs_method}")
    if (options.race is not None or options.refine) and options.susp_side == "random":
        messages.append("--susp_side random makes no cut in a ranking: leave out --race and --refine")
    return messages


def run(options: Options) -> None:
    """Rank the filters by the method of -f, or estimate the ratio, and write the results."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.assess.report import report_ranking
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model
    from deeppatch.localization.scoring import rank_filters

    context = open_stage(options, STAGE)
    model = base_model(context)
    if options.fs_method == "ratioestim":
        run_ratio_estimation(options, context, model)
    elif not context.already_finished():
        ranking = rank_filters(
            model,
            context.data,
            context.corruption,
            method=options.fs_method,
            refine=options.refine,
            eliminate=options.race,
            ratio=options.susp_ratio or DEFAULT_RATIO,
            side=options.susp_side,
            memory=options.mem,
            batch_size=options.batch_size,
            amp=options.amp,
            seed=options.seed,
            checkpoint=context.checkpoint(base=state_digest(model.state_dict())),
        )
        report_ranking(context, model, ranking)


def run_ratio_estimation(options: Options, context: Context, model: Classifier) -> None:
    """Train a patch at each ratio and write the curve, the chosen ratio and the ranking that was used."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.assess.report import report_ratio
    from deeppatch.cli.rankings import load_ranking
    from deeppatch.localization.ratio_estimation import estimate_ratio
    from deeppatch.patching.training import train_patch

    ranking = load_ranking(context, model)[0] if options.ranking else None
    if context.already_finished():
        return
    base = state_digest(model.state_dict())

    def train(channels: dict[str, list[int]]) -> nn.Module:
        count = sum(map(len, channels.values()))
        checkpoint = context.checkpoint(f"checkpoint-{count}-filters.pt", base=base, channels=channels)
        patch = train_patch(
            model,
            context.data,
            context.corruption,
            channels,
            kind=options.crt_type,
            epochs=options.crt_epoch,
            batch_size=options.batch_size,
            seed=options.seed,
            checkpoint=checkpoint,
            **context.training_options(),
        )
        checkpoint.remove()
        return patch.apply(model)

    estimate = estimate_ratio(
        model,
        context.data,
        context.corruption,
        train=train,
        ranking=ranking,
        side=options.susp_side,
        batch_size=options.batch_size,
        amp=options.amp,
        seed=options.seed,
        checkpoint=context.checkpoint("curve.pt", base=base),
    )
    report_ratio(context, model, estimate)
