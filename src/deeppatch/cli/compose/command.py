"""compose: let a module of a strong model correct one class of a weak model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deeppatch.cli.arguments import model_name
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import StageOptions
from deeppatch.errors import UserError
from deeppatch.modular.join_names import parse
from deeppatch.modular.names import FITS, GRADIENT_PRESETS, JOINS, METHODS, PRESETS
from deeppatch.modular.weak_networks import mix_of

STAGE = "compose"
DESCRIPTION = """Compose: join a weak model and the module of a strong model for one class, which it corrects; or,
with --assemble, make a classifier of modules of several models.

-m and -d name the strong model and its data, as for modularize. The weak model has other classes, and last the one to
correct (-d cifar10-mix:T, svhn-mix:T or digits-mix:T); it is trained by its recipe where pretrain has not left it.

With --assemble FOLDER ... -d names the data of the new classifier, which may select classes of several data sets
(-d digits:0-4+svhn:5-9), and the folders are those that modularize left for models that know these classes. Each class
is answered by the module of highest F1 on val; nothing is trained. Beside it are measured its base models and, where
pretrain has left one, the network -m that was trained for these data."""
EXAMPLE = "-m simcnn -d cifar10 --val_share 0.2 --fit simple --target all"
REPAIR = False
ARTIFACTS = (
    Folder(
        "compose-assembled",
        "a classifier of modules of several models, with `--assemble`",
        {
            "assembled.safetensors": "the classifier: the modules, where they are from, and the names of the classes",
            "modules.csv": "precision, recall and F1 of every module that a class could have, and which it has",
            "table.csv": "accuracy of the classifier, its base models, and the network that was trained for the data",
            "metrics.json": "the same numbers, and the origin of each module",
        },
        {"assembled.onnx": "the classifier, from pixels to scores, with `--onnx`"},
    ),
    Folder(
        "compose-METHOD[-no-head][-PRESET]-FIT",
        "a weak model's classes before and after a module corrects each",
        {
            "table.csv": "precision, recall, F1 and accuracy of the other classes, by class and join",
            "ranges.json": "the ranges of scores by which joins make module and weak model comparable",
            "metrics.json": "the numbers of the table, weak and strong model, and numbers of test images",
            "corrected.png": "a plot of each class before and after",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of compose; `join` None means all that apply, `weak` and `weak_epoch` None the published ones."""

    target: str = "all"
    fit: str = "simple"
    weak: str | None = None
    join: Sequence[str] | None = None
    weak_epoch: int | None = None
    method: str = "grad"
    no_head: bool = False
    preset: str = "auto"
    modules: Path | None = None
    assemble: Sequence[Path] | None = None
    no_calibration: bool = False
    onnx: bool = False


class JoinedClasses(argparse.Action):
    """Set -d to the classes of several data sets."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        """Join them by the sign that -d reads."""
        namespace.dataset = "+".join(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("compose")
    group.add_argument(
        "--target", default="all", metavar="CLASS", help="class to correct, by index or name, or all (default: all)"
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        default="simple",
        help="why the weak model is weak: an overly simple network, over-fitted or under-fitted (default: simple)",
    )
    group.add_argument(
        "--weak",
        type=model_name,
        metavar="NAME",
        help="weak network (default: the published one for strong network, data and --fit, such as simcnn_weak)",
    )
    group.add_argument(
        "--join",
        nargs="+",
        metavar="JOIN",
        help=f"{', '.join(JOINS)}, or percentile:M,N; the first is shown by class (default: all "
        "that apply, first direct where modules have heads, else min_max)",
    )
    group.add_argument(
        "--weak_epoch", "--epochs", type=int, metavar="N", help="epochs of a weak model (default: its recipe's)"
    )
    group.add_argument("--method", choices=METHODS, default="grad", help="modularize's (default: grad)")
    group.add_argument("--no_head", action="store_true", help="modularize's: modules without heads")
    group.add_argument(
        "--preset",
        choices=dict.fromkeys([*GRADIENT_PRESETS, *PRESETS]),
        default="auto",
        help="modularize's (default: auto)",
    )
    group.add_argument(
        "--modules", type=Path, metavar="FILE", help="a modules.safetensors to use instead of the one from modularize"
    )
    group.add_argument(
        "--assemble",
        "--from",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="folders that modularize left, of whose modules a classifier for -d is made, instead of correcting a weak "
        "model",
    )
    group.add_argument(
        "--classes",
        dest="dataset",
        action=JoinedClasses,
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="DATA:CLASSES",
        help="the same as -d with a + between these: --classes digits:0-4 svhn:5-9 is -d digits:0-4+svhn:5-9",
    )
    group.add_argument(
        "--no_calibration",
        action="store_true",
        help="with --assemble: leave the scores of the modules as they are, as published, on no common scale",
    )
    group.add_argument(
        "--onnx",
        action="store_true",
        help="with --assemble: write the classifier as ONNX, too (needs deeppatch[export])",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    if options.assemble is not None:
        return _problems_of_assembling(options)
    messages = [f"--{name} goes with --assemble" for name in ("no_calibration", "onnx") if getattr(options, name)]
    if options.weak_epoch is not None and options.weak_epoch < 1:
        messages.append(f"--weak_epoch {options.weak_epoch}: give a whole number above 0")
    try:
        mix_of(options.dataset)
    except UserError as error:
        messages.append(str(error))
    joins = list(options.join or [])
    for join in joins:
        try:
            parse(join)
        except UserError as error:
            messages.append(f"--{error}")
    if len(set(joins)) < len(joins):
        messages.append(f"--join {' '.join(joins)}: give each once")
    if "direct" in joins and (options.method != "grad" or options.no_head):
        messages.append("--join direct needs modules with heads, of modularize --method grad")
    return messages


def _problems_of_assembling(options: Options) -> list[str]:
    """Return the options of the other use of this stage, and folders that were not left by modularize."""
    idle = ("target", "fit", "weak", "join", "weak_epoch", "method", "no_head", "preset", "modules")
    given = [name for name in idle if getattr(options, name) != options.defaults.get(name)]
    messages = [f"--{name} is of no use with --assemble: leave it out" for name in given]
    messages += ["--assemble: name the folders that modularize has left"] * (not options.assemble)
    folders = [folder.resolve() for folder in options.assemble or []]
    twice = [folder for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    return messages + [f"--assemble {folder}: give each folder once" for folder in twice]


def run(options: Options) -> None:
    """Correct a weak model by modules of a strong one, or assemble a classifier of modules."""
    if options.assemble is None:
        run_correction(options)
    else:
        run_assembling(options)


def run_assembling(options: Options) -> None:
    """Assemble a classifier, compare it with its base models, and report."""
    from deeppatch.cli.compose import assembling
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.export.inputs import installed
    from deeppatch.modular.assembling import assemble
    from deeppatch.modular.assembly_controls import compare_assembled

    assert options.assemble is not None
    context = open_stage(options, STAGE)
    if options.onnx:
        installed()
    models = assembling.split_models(context, options.assemble)
    others = assembling.trained_for_the_task(context)
    if options.resume and options.onnx and not (context.stage.folder / "assembled.onnx").exists():
        context.begin()  # a run that has finished without this file
    elif context.already_finished():
        return
    batch_size, amp = options.batch_size, options.amp
    assembled = assemble(models, context.data, calibrate=not options.no_calibration, batch_size=batch_size, amp=amp)
    table = compare_assembled(assembled, models, context.data, others, batch_size=batch_size, amp=amp)
    assembling.report(context, assembled, table)


def run_correction(options: Options) -> None:
    """Train or read the weak models, join each with its class's module, and report before and after."""
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.compose import inputs
    from deeppatch.cli.compose.report import report
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.predecessors import base_model
    from deeppatch.modular.joining import compare_joins, default_joins

    context = open_stage(options, STAGE)
    strong, modules, digest = inputs.read_modules(context, base_model(context))
    joins = options.join or default_joins(modules)
    chosen = inputs.targets(context)
    for target in chosen:
        inputs.prepare_weak_model(inputs.weak_context(context, target))
    if context.already_finished():
        return
    checkpoint = context.checkpoint(modules=digest)
    done = inputs.composed(checkpoint)
    data = context.data
    for target in chosen:
        name, weak = data.classes[target], inputs.weak_context(context, target)
        model = inputs.weak_model(weak)
        base = state_digest(model.state_dict())
        if name not in done or done[name]["base"] != base:
            comparison = compare_joins(
                model,
                modules,
                strong,
                target,
                data,
                weak.data,
                joins=joins,
                batch_size=options.batch_size,
                amp=options.amp,
                seed=options.seed,
            )
            done[name] = {"base": base, **asdict(comparison)}
            checkpoint.save(done)
    report(context, done, joins)
    checkpoint.remove()
