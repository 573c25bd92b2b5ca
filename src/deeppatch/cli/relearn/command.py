"""relearn: repair a network with the labels that annotate chose and the pool's unlabelled images."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from deeppatch.cli.annotate import command as annotate
from deeppatch.cli.arguments import add_number
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import DEFAULT_SEED
from deeppatch.hybrid.names import LEARNING_RATES, POOL_WEIGHTS, PRIOR, PSEUDO_LABELS, SCOPES, USES

STAGE = "relearn"
DESCRIPTION = "Relearn: repair a network with the labels that annotate chose and, in HybridRepair, unlabelled images."
EXAMPLE = "-m mobilenet -d cifar10 --bias B --method hybrid --budget 1%"
REPAIR = False
ARTIFACTS = (
    Folder(
        "relearn-compare",
        "all finished runs of a model, with `--compare`",
        {
            "runs.csv": "a row for each run",
            "comparison.csv": "a row for each kind of run, over its seeds",
            "comparison.json": "the same as JSON",
            "gained.png": "a plot of gained accuracy against labels",
        },
    ),
    Folder(
        "relearn-METHOD",
        "the repaired network",
        {
            "weights.safetensors": "the weights of the repaired network",
            "history.csv": "losses and accuracy after each epoch, where one was trained",
            "classes.csv": "accuracy of each class before and after",
            "row.csv": "one row that says what was run and what came of it, for `--compare`",
            "metrics.json": "the same, accuracy by epoch and class, and diagnostics where the pool is simulated",
        },
        {"prior.csv": "the estimated shares of the classes in the pool, where the prior was estimated"},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(annotate.Options):
    """The options of relearn; those of annotate identify the selection that it reads."""

    labels: Path | None = None
    selection: Path | None = None
    use: str = "both"
    pseudo_labels: str = "safe"
    scope: str = "all"
    no_prior: bool = False
    trust_prior: bool = False
    epochs: int = 10
    lr: float = LEARNING_RATES["safe"]
    weight_decay: float = 5e-4
    max_batches: int | None = None
    ramp: int = 0
    pseudo_weight: float = 100.0
    pool_weights: str = "dynamic"
    compare: bool = False
    batch_size: int = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage, and those that identify annotate's folder."""
    annotate.add_selection(parser, "--encoder_epochs")
    group = parser.add_argument_group("relearn")
    add_safe(group)
    group.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="the table of annotate, selection.csv, filled in, which images of your own need (default: with --bias the "
        "oracle's labels)",
    )
    group.add_argument(
        "--use",
        choices=list(USES),
        default=Options.use,
        help="labels: only the supervised phase; unlabelled: only pseudo-labels, no label (default: both)",
    )
    add_number(
        group,
        "-e",
        "--epochs",
        default=Options.epochs,
        what="epochs of the warm start, and of the repair (default: 10)",
    )
    add_number(
        group,
        "--lr",
        kind=float,
        default=Options.lr,
        what="learning rate of SGD at the start (default: 0.03; 1e-3 throughout with --pseudo_labels published)",
    )
    add_number(group, "--weight_decay", kind=float, default=Options.weight_decay, what="L2 penalty (default: 5e-4)")
    add_number(
        group,
        "--max_batches",
        "--steps",
        what="at most N batches in an epoch, or with --pseudo_labels published in each of its two phases, for a CPU "
        "(default: all)",
    )
    add_number(
        group,
        "--ramp",
        default=Options.ramp,
        what="with --pseudo_labels published: epochs over which the weight of pseudo-labels grows to its value "
        "(default: 0, as published: whole from the start)",
    )
    add_number(
        group,
        "--pseudo_weight",
        kind=float,
        default=Options.pseudo_weight,
        what="with --pseudo_labels published: weight of the loss on pseudo-labels (default: 100, as published)",
    )
    group.add_argument(
        "--pool_weights",
        choices=list(POOL_WEIGHTS),
        default=Options.pool_weights,
        help="hybrid with --pseudo_labels published: images without labels are drawn by their certainty after each "
        "epoch (dynamic), by that at the selection (fixed), or all alike (equal) (default: dynamic)",
    )
    group.add_argument(
        "--compare", action="store_true", help="train nothing: compare all runs of this model, over methods and seeds"
    )
    group.add_argument(
        "--selection", type=Path, metavar="FILE", help="a selection.safetensors to use instead of the one from annotate"
    )
    parser.set_defaults(batch_size=Options.batch_size)


def add_safe(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the safe recipe and of the correction of the prior."""
    group.add_argument(
        "--pseudo_labels",
        choices=list(PSEUDO_LABELS),
        default=Options.pseudo_labels,
        help="safe: the prior corrected, logit-adjusted labels, pseudo-labels of an averaged teacher above "
        "self-adaptive thresholds, and a floor; published: the recipe of HybridRepair (default: safe)",
    )
    group.add_argument(
        "--scope",
        choices=list(SCOPES),
        default=Options.scope,
        help="what the safe recipe trains: all, the last layer (head), or that and the normalisations (norms)",
    )
    group.add_argument(
        "--no_prior", action="store_true", help="let the safe recipe start without the correction of the prior"
    )
    group.add_argument(
        "--trust_prior",
        action="store_true",
        help="correct the prior even if the predictions for the pool contradict it, as where not only "
        "classes have shifted",
    )


def preset(options: argparse.Namespace) -> dict[str, object]:
    """Return the learning rate of the published recipe, which is not that of the safe one."""
    return {"lr": LEARNING_RATES["published"]} if options.pseudo_labels == "published" else {}


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = annotate.problems_of_selection(options) + _problems_of_safe(options)
    for name in ("epochs", "max_batches"):
        value = getattr(options, name)
        messages += [f"--{name} {value}: give at least 1"] * (value is not None and value < 1)
    if not 0 <= options.pseudo_weight < math.inf:
        messages.append(f"--pseudo_weight {options.pseudo_weight}: give 0 or more")
    if options.pool_weights != "dynamic" and options.method != "hybrid":
        messages.append(f"--pool_weights {options.pool_weights} can only be used with --method hybrid")
    if options.use == "unlabelled" and (options.rounds > 1 or options.step is not None):
        messages.append("--use unlabelled buys no labels: leave --rounds and --step out")
    messages += [f"--ramp {options.ramp}: give 0 or more"] * (options.ramp < 0)
    if options.labels is not None:
        messages += ["--labels can only be used with --use both or labels"] * (options.use == "unlabelled")
        messages += ["--labels can only be used with images of your own: with --bias an oracle has the labels"] * bool(
            options.bias
        )
    return messages


def _problems_of_safe(options: Options) -> list[str]:
    safe, prior = options.pseudo_labels == "safe", options.method == PRIOR
    wrong = {
        f"--scope {options.scope} can only be used with --pseudo_labels safe": options.scope != "all" and not safe,
        "--no_prior can only be used with --pseudo_labels safe": options.no_prior and not safe,
        "--trust_prior can only be used with --method prior or --pseudo_labels safe": options.trust_prior
        and not (safe or prior),
        "--ramp, --pseudo_weight and --pool_weights can only be used with --pseudo_labels published": safe
        and any(getattr(options, name) != getattr(Options, name) for name in ("ramp", "pseudo_weight", "pool_weights")),
        "--trust_prior and --no_prior contradict each other": options.trust_prior and options.no_prior,
        "--method prior reads no labels: leave --labels and --selection out": prior
        and bool(options.labels or options.selection),
    }
    return [message for message, holds in wrong.items() if holds]


def run(options: Options) -> None:
    """Repair the network and report, or compare the results of earlier runs."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.relearn import inputs, report

    if options.compare:
        any_seed = type(options)(**{**vars(options), "seed": DEFAULT_SEED})  # the comparison is over all seeds
        report.compare(open_stage(any_seed, STAGE), inputs.finished_runs)
    elif options.method == PRIOR:
        _correct_prior(options)
    else:
        _repair(options)


def _correct_prior(options: Options) -> None:
    from deeppatch.cli.annotate.inputs import pool_of
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model
    from deeppatch.cli.relearn import report
    from deeppatch.hybrid.prior_correction import correct_prior

    context = open_stage(options, STAGE)
    model = base_model(context)
    pool = pool_of(context)
    if context.already_finished():
        return
    corrected = correct_prior(
        model,
        context.data,
        pool.pixels,
        trust=options.trust_prior,
        batch_size=options.batch_size,
        amp=options.amp,
        seed=options.seed,
    )
    report.report_prior(context, model, corrected)
    context.stage.finish()


def _repair(options: Options) -> None:
    from deeppatch.cli.annotate.inputs import pool_of
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model
    from deeppatch.cli.relearn import inputs, report
    from deeppatch.hybrid.relearning import Relearned, repair_from_warm_start, settings_of_warm_start
    from deeppatch.hybrid.selection import Selection
    from deeppatch.hybrid.training_data import Recipe, RepairSettings

    context = open_stage(options, STAGE)
    model = base_model(context)
    pool = pool_of(context)
    selection = inputs.load_selection(context, model, pool)
    if context.already_finished():
        return
    recipe = Recipe(
        batch=options.batch_size, weight=options.pseudo_weight, ramp=options.ramp, steps=options.max_batches
    )
    settings = RepairSettings(
        options.epochs, options.lr, weight_decay=options.weight_decay, seed=options.seed, amp=options.amp
    )
    safe = inputs.safe_training(options, pool) if options.pseudo_labels == "safe" else None
    checkpoints = {"start": context.checkpoint("checkpoint-start.pt")}

    def repaired(chosen: Selection, number: int) -> Relearned:
        name = "checkpoint.pt" if number == 0 else f"checkpoint-round{number}.pt"
        checkpoints[name] = context.checkpoint(name, **({"pool": pool.digest} if pool.folder else {}))
        return repair_from_warm_start(
            model,
            context.data,
            pool.pixels,
            chosen,
            settings,
            use=options.use,
            views=options.views,
            pool_weights=options.pool_weights,
            recipe=recipe,
            safe=safe,
            cache=inputs.warm_starts(context),
            start_checkpoint=checkpoints["start"],
            checkpoint=checkpoints[name],
        )

    selection = inputs.after_all_rounds(context, model, pool, selection, lambda *given: repaired(*given).repaired)
    relearned = repaired(selection, 0)
    inputs.inherit_warm_start(context, model, recipe, settings_of_warm_start(settings) if safe else settings)
    report.report(context, selection, model, relearned)
    context.stage.finish()
    for each in checkpoints.values():
        each.remove()
