"""modularize: split a network into a module of few kernels for each class."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import StageOptions
from deeppatch.modular.names import GRADIENT_PRESETS, IMPORTANCES, METHODS, PRESETS, STARTS, TUNING_LR
from deeppatch.modular.presets import PRESETS as GENETIC_PRESETS
from deeppatch.modular.presets import PUBLISHED_GRADIENT

if TYPE_CHECKING:
    from deeppatch.stage import Stopwatch

STAGE = "modularize"
DESCRIPTION = "Modularize: find for each class the kernels that it needs; leave them as modules, and compose these."
EXAMPLE = "-m simcnn -d cifar10 --val_share 0.2"
REPAIR = False
ARTIFACTS = (
    Folder(
        "modularize-METHOD[-no-head][-PRESET]",
        "a module for each class",
        {
            "modules.safetensors": "the kernels that each class keeps, and the heads of the modules",
            "modules.csv": "the kernels that each module keeps of each layer, and its multiply-adds",
            "history.csv": "the search, a row for each epoch or generation",
            "sensitivity.csv": "accuracy when modules keep only a part of one layer",
            "metrics.json": "accuracy of the network and of all modules together, and their cost",
            "kept.png": "a plot of the kernels that modules keep, by layer",
            "overlap.png": "a plot of the kernels that two modules share",
            "search.png": "a plot of the search",
        },
        {
            "weights.safetensors": "the network whose modules these are, with `--tune_epochs`",
            "tuning.csv": "loss and composed accuracy on val of each epoch of `--tune_epochs`, 0 for before",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of this stage; `budget` None is the method's own number of epochs or generations."""

    method: str = "grad"
    budget: int | None = None
    search_images: int | None = None
    sensitivity_images: int = 1000
    sensitive: Sequence[float] = (0.05, 0.5)
    importance: str = "pooled"
    start: str = "importance"
    alpha: float = 0.5
    shared: float = 0.0
    max_drop: float = 1.0
    lr: float = 0.001
    no_head: bool = False
    scale_scores: bool = False
    preset: str = "auto"
    patience: int | None = None
    tune_epochs: int = 0
    tune_lr: float = TUNING_LR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("modularize")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="grad",
        help="how kernels are chosen: by gradient (GradSplitter) or by a genetic search (CNNSplitter) (default: grad)",
    )
    group.add_argument(
        "--budget",
        "--epochs",
        type=int,
        metavar="N",
        help="epochs of grad (default: 145, as published), generations of ga (default: the preset's)",
    )
    group.add_argument(
        "--search_images",
        type=int,
        metavar="N",
        help="images that the search reads: of train for grad (default: all), of half of val for ga (default: 2500)",
    )
    group.add_argument(
        "--sensitivity_images",
        type=int,
        default=1000,
        metavar="N",
        help="images of val that the table of sensitive layers reads (default: 1000)",
    )
    group.add_argument(
        "--sensitive",
        type=float,
        nargs=2,
        default=Options.sensitive,
        metavar=("DROP", "SHARE"),
        help="a layer is sensitive where composed accuracy falls by more than DROP when modules keep the SHARE of its "
        "kernels, a tenth to nine (default: 0.05 0.5)",
    )
    group.add_argument(
        "--alpha", type=float, default=0.5, metavar="A", help="grad: weight of the kernels kept (default: 0.5)"
    )
    group.add_argument(
        "--shared",
        type=float,
        default=0.0,
        metavar="B",
        help="grad: weight of the kernels that two modules both keep (default: 0)",
    )
    group.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="grad: of the epochs that lose less than this of the accuracy on val, the smallest modules (default: 1)",
    )
    group.add_argument("--lr", type=float, default=0.001, metavar="X", help="grad: learning rate (default: 0.001)")
    group.add_argument(
        "--no_head", action="store_true", help="grad: a module gives the logit of its class, no trained head"
    )
    group.add_argument(
        "--scale_scores",
        action="store_true",
        help="with --no_head: each module's logit gets a scale and a bias, so that modules compare: trained with the "
        "masks, and in the end fitted on val",
    )
    group.add_argument(
        "--preset",
        choices=dict.fromkeys([*GRADIENT_PRESETS, *PRESETS]),
        default="auto",
        help="grad: published for GradSplitter's own settings (--alpha 0.1 --start ones, a new optimizer in each "
        "phase), auto for ours (--alpha 0.5 --start importance); ga: those published for a network and data set, or "
        "auto (default: auto)",
    )
    group.add_argument(
        "--importance",
        choices=IMPORTANCES,
        default="pooled",
        help="where the response of a kernel is read: where the next layer reads it (pooled), before max pooling "
        "(unpooled), or nowhere, as a control (random) (default: pooled for grad; for ga as published: unpooled, but "
        "pooled with --preset rescnn-...)",
    )
    group.add_argument(
        "--start",
        choices=STARTS["grad"],
        default="importance",
        help="grad: how thresholds begin, selective with the half of all kernels that answer mostly to the class; "
        "ga: the first population, importance or random (default: importance)",
    )
    group.add_argument(
        "--patience", type=int, metavar="N", help="ga: end after N generations without a better one (default: never)"
    )
    group.add_argument(
        "--tune_epochs",
        type=int,
        default=0,
        metavar="N",
        help="then train the kernels through the modules that keep them, as after pruning, and leave the network that "
        "they are of beside them (default: 0)",
    )
    group.add_argument(
        "--tune_lr",
        type=float,
        default=TUNING_LR,
        metavar="X",
        help=f"learning rate of --tune_epochs (default: {TUNING_LR})",
    )


def preset(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return the defaults of --preset."""
    if options.method == "ga":
        genetic = GENETIC_PRESETS.get(options.preset)
        return {"importance": genetic.importance} if genetic else {}
    return PUBLISHED_GRADIENT if options.preset == "published" else {}


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    counts = {name: getattr(options, name) for name in ("budget", "search_images", "sensitivity_images", "patience")}
    messages = [f"--{k} {v}: give a whole number above 0" for k, v in counts.items() if v is not None and v < 1]
    drop, share = options.sensitive
    if not 0 <= drop < 1 or round(10 * share) not in range(1, 10) or abs(10 * share - round(10 * share)) > 1e-9:
        messages.append(
            f"--sensitive {drop:g} {share:g}: give a drop of accuracy from 0 to below 1, and 0.1, 0.2 ... 0.9"
        )
    for name in ("alpha", "shared", "max_drop", "tune_epochs"):
        if not 0 <= getattr(options, name) < float("inf"):
            messages.append(f"--{name} {getattr(options, name)}: give 0 or more")
    if not 0 < options.tune_lr < float("inf"):
        messages.append(f"--tune_lr {options.tune_lr}: give a number above 0")
    if options.tune_lr != Options.tune_lr and not options.tune_epochs:
        messages.append("--tune_lr can only be used with --tune_epochs")
    if options.method == "ga":
        messages += ["--no_head can only be used with --method grad"] * options.no_head
        messages += ["--scale_scores can only be used with --method grad"] * options.scale_scores
        messages += ["--shared can only be used with --method grad"] * (options.shared > 0)
        if options.start not in STARTS["ga"]:
            messages.append(f"--start {options.start} can only be used with --method grad")
    elif options.patience is not None:
        messages.append("--patience can only be used with --method ga")
    if options.method == "grad" and options.scale_scores and not options.no_head:
        messages.append("--scale_scores is for modules that answer by their logits; give --no_head as well")
    return messages + problems_of_preset(options.method, options.preset)


def problems_of_preset(method: str, preset: str) -> list[str]:
    """Return what is wrong with a preset that another method has."""
    fitting = {"grad": GRADIENT_PRESETS, "ga": PRESETS}[method]
    other = "ga" if method == "grad" else "grad"
    return [] if preset in fitting else [f"--preset {preset} can only be used with --method {other}"]


def run(options: Options) -> None:
    """Analyse, search, extract, compose and report, in one process."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.modularize import report
    from deeppatch.cli.modularize.inputs import settings_of
    from deeppatch.cli.predecessors import base_model
    from deeppatch.modular.analysis import analyse
    from deeppatch.modular.measuring import accuracy_on_test, measure_modules
    from deeppatch.modular.splitting import search
    from deeppatch.modular.tuning import tune_modules

    context = open_stage(options, STAGE)
    model = base_model(context)
    if context.already_finished():
        return
    base, data = state_digest(model.state_dict()), context.data
    kept = ("analysis.pt", "checkpoint.pt", "tuning.pt")
    analysing, searching, tuning = checkpoints = [context.checkpoint(name, base=base) for name in kept]
    watch = context.stage.watch  # run.json has the times of phases, and no file whose bytes repeat
    with timed("analysis", watch):
        analysis = analyse(
            model,
            data,
            images=options.sensitivity_images,
            importance=options.importance,
            seed=options.seed,
            checkpoint=analysing,
        )
        report.sensitivity(context, analysis)
    with timed("search", watch):
        modules = search(analysis, data, settings_of(context), amp=options.amp, seed=options.seed, checkpoint=searching)
    untuned = None
    if options.tune_epochs:
        with timed("tuning", watch):
            untuned = accuracy_on_test(model, data, batch_size=options.batch_size)
            model, modules, table = tune_modules(
                model,
                modules,
                data,
                epochs=options.tune_epochs,
                lr=options.tune_lr,
                seed=options.seed,
                amp=options.amp,
                checkpoint=tuning,
            )
        report.tuned(context, model, table)
    context.stage.write("modules.safetensors", modules.to_bytes())
    with timed("evaluation", watch):
        found = measure_modules(model, modules, data, batch_size=options.batch_size)
        assert modules.history is not None
        facts = report.modules(context, analysis, modules.history, found, untuned)
    context.stage.write_json("metrics.json", facts)
    context.stage.finish()
    for checkpoint in checkpoints:
        checkpoint.remove()


@contextmanager
def timed(phase: str, watch: Stopwatch) -> Iterator[None]:
    """Count and log the wall time of a phase."""
    from deeppatch.progress import info

    with watch.phase(phase):
        yield
    info(f"{phase}: {watch.phases[phase]:.1f} s")
