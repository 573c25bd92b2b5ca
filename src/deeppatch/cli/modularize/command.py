"""modularize: split a network into a module of few kernels for each class."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deeppatch.artifacts import state_digest
from deeppatch.cli.context import open_stage
from deeppatch.cli.modularize.analysing import Analysis, analysed
from deeppatch.cli.modularize.report import report
from deeppatch.cli.modularize.splitting import SEARCHES
from deeppatch.cli.predecessors import base_model
from deeppatch.modular.masking import EVALUATORS
from deeppatch.modular.modules import Modules
from deeppatch.modular.presets import PRESETS
from deeppatch.progress import info

STAGE = "modularize"
DESCRIPTION = "Modularize: find for each class the kernels that it needs; leave them as modules, and compose these."
EXAMPLE = "-m simcnn -d cifar10 --val_share 0.2"
REPAIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("modularize")
    group.add_argument(
        "--method",
        choices=list(SEARCHES),
        default="grad",
        help="how kernels are chosen: by gradient (GradSplitter) or by a genetic search (CNNSplitter) (default: grad)",
    )
    group.add_argument(
        "--budget",
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
        default=[0.05, 0.5],
        metavar=("DROP", "SHARE"),
        help="a layer is sensitive where composed accuracy falls by more than DROP when modules keep the SHARE of its "
        "kernels, a tenth to nine (default: 0.05 0.5)",
    )
    group.add_argument(
        "--alpha", type=float, default=0.5, metavar="A", help="grad: weight of the kernels kept (default: 0.5)"
    )
    group.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="grad: of the epochs that lose less than this of the accuracy on val, the smallest modules (default: 1)",
    )
    group.add_argument("--lr", type=float, default=0.001, metavar="X", help="grad: learning rate (default: 0.001)")
    group.add_argument("--no_head", action="store_true", help="grad: modules answer by their logit, no trained head")
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        default="auto",
        help="ga: published settings of a network and data set, or derived ones (default: auto)",
    )
    group.add_argument(
        "--patience", type=int, metavar="N", help="ga: end after N generations without a better one (default: never)"
    )
    group.add_argument(
        "--evaluator",
        choices=list(EVALUATORS),
        default="slice",
        help="ga: run candidates as smaller networks, or as masks on the whole one (default: slice)",
    )
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    counts = {name: getattr(options, name) for name in ("budget", "search_images", "sensitivity_images", "patience")}
    found = [f"--{k} {v}: give a whole number above 0" for k, v in counts.items() if v is not None and v < 1]
    drop, share = options.sensitive
    if not 0 <= drop < 1 or round(10 * share) not in range(1, 10) or abs(10 * share - round(10 * share)) > 1e-9:
        found.append(f"--sensitive {drop:g} {share:g}: give a drop of accuracy from 0 to below 1, and 0.1, 0.2 ... 0.9")
    for name in ("alpha", "max_drop"):
        if not 0 <= getattr(options, name) < float("inf"):
            found.append(f"--{name} {getattr(options, name)}: give 0 or more")
    if options.method == "ga":
        found += ["--no_head goes with --method grad only"] * options.no_head
    else:
        given = {"preset": "auto", "patience": None, "evaluator": "slice"}
        found += [f"--{k} goes with --method ga only" for k, v in given.items() if getattr(options, k) != v]
    return found


def run(options: argparse.Namespace) -> None:
    """Analyse, search, extract, compose and report, in one process."""
    context = open_stage(options, STAGE)
    model = base_model(context)
    if context.already_finished():
        return
    seconds: dict[str, float] = {}
    with timed("analysis", seconds):
        analysis = analysed(context, model)
    with timed("search", seconds):
        masks, heads, history = SEARCHES[options.method](analysis)
    kept = {layer.name: mask.bool().cpu() for layer, mask in zip(analysis.layers, masks, strict=True)}
    modules = Modules(state_digest(model.state_dict()), kept, heads)
    context.stage.write("modules.safetensors", modules.to_bytes())
    with timed("evaluation", seconds):
        facts = report(analysis, modules, history)
    context.stage.write_json("metrics.json", {**facts, "seconds": seconds})
    context.stage.finish()
    for name in Analysis.CHECKPOINTS:
        context.checkpoint(name).remove()


@contextmanager
def timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note the wall time of a phase."""
    start = time.monotonic()
    yield
    seconds[phase] = round(time.monotonic() - start, 2)
    info(f"{phase}: {seconds[phase]:.1f} s")
