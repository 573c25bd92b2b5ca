"""compose: let a module of a strong model correct one class of a weak model."""

from __future__ import annotations

import argparse
from pathlib import Path

from deeppatch.artifacts import sha256, state_digest
from deeppatch.cli.compose.joining import compare
from deeppatch.cli.compose.report import report
from deeppatch.cli.compose.weak import prepared, targets, weak_context, weak_model
from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.modularize.splitting import SEARCHES
from deeppatch.cli.predecessors import base_model
from deeppatch.errors import OtherBase, UserError
from deeppatch.modular import joins
from deeppatch.modular.modules import Modules
from deeppatch.modular.presets import PRESETS
from deeppatch.modular.weak_networks import FITS, mix_of
from deeppatch.progress import info
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

STAGE = "compose"
DESCRIPTION = """Compose: join a weak model and the module of a strong model for one class, which it corrects.

-m and -d name the strong model and its data, as for modularize. The weak model has other classes, and last the one to
correct (-d cifar10-mix:T, svhn-mix:T or digits-mix:T); it is trained by its recipe where pretrain has not left it."""
EXAMPLE = "-m simcnn -d cifar10 --val_share 0.2 --fit simple --target all"
REPAIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("compose")
    group.add_argument(
        "--target", default="all", metavar="CLASS", help="class to correct, by number or name, or all (default: all)"
    )
    group.add_argument(
        "--fit",
        choices=list(FITS),
        default="simple",
        help="why the weak model is weak: an overly simple network, over-fitted or under-fitted (default: simple)",
    )
    group.add_argument(
        "--weak",
        choices=sorted(ARCHITECTURES),
        metavar="NAME",
        help="weak network (default: the published one for strong network, data and --fit, such as simcnn_weak)",
    )
    group.add_argument(
        "--join",
        nargs="+",
        metavar="JOIN",
        help=f"{', '.join(joins.JOINS)}, or percentile:M,N; the first is the one that is shown by class (default: all "
        "that apply, first direct where modules have heads, else min_max)",
    )
    group.add_argument("--weak_epoch", type=int, metavar="N", help="epochs of a weak model (default: its recipe's)")
    group.add_argument("--method", choices=list(SEARCHES), default="grad", help="modularize's (default: grad)")
    group.add_argument("--no_head", action="store_true", help="modularize's: modules without heads")
    group.add_argument("--preset", choices=list(PRESETS), default="auto", help="modularize's (default: auto)")
    group.add_argument(
        "--modules", type=Path, metavar="FILE", help="a modules.safetensors to use instead of the one modularize left"
    )
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.weak_epoch is not None and options.weak_epoch < 1:
        found.append(f"--weak_epoch {options.weak_epoch}: give a whole number above 0")
    for join in options.join or []:
        try:
            joins.parse(join)
        except UserError as error:
            found.append(str(error))
    if len(set(options.join or [])) < len(options.join or []):
        found.append(f"--join {' '.join(options.join)}: give each once")
    if options.join and "direct" in options.join and (options.method != "grad" or options.no_head):
        found.append("--join direct needs modules with heads, of modularize --method grad")
    return found


def run(options: argparse.Namespace) -> None:
    """Train or read the weak models, join each with its class's module, and report before and after."""
    mix_of(options.dataset)
    context = open_stage(options, STAGE)
    strong = base_model(context)
    modules, digest = read_modules(context, strong)
    asked = options.join or ["direct"] * modules.bounded + [join for join in joins.JOINS if join != "direct"]
    chosen = targets(context)
    for target in chosen:
        prepared(weak_context(context, target))
    if context.already_finished():
        return
    checkpoint = context.checkpoint(modules=digest)
    done = checkpoint.load() or {}
    for target in chosen:
        name, weak = context.source.classes[target], weak_context(context, target)
        model = weak_model(weak)
        base = state_digest(model.state_dict())
        if name not in done or done[name]["base"] != base:
            member = modules.member(strong, context.example, target).to(context.device)
            done[name] = {"base": base, **compare(context, weak, model, member, target, asked)}
            checkpoint.save(done)
    report(context, done, asked)
    checkpoint.remove()


def read_modules(context: Context, strong: Classifier) -> tuple[Modules, str]:
    """Read what modularize left for the strong model, and the hash of its file."""
    path, command = context.locate("modularize", "modules.safetensors")
    content = context.stage.read(path, command)
    modules = Modules.from_bytes(content, path)
    if modules.base != state_digest(strong.state_dict()):
        raise OtherBase(path, command)
    info(f"inherited {path} ({modules.classes} modules)")
    return modules, sha256(content)
