"""The inputs of compose: modules, and weak models with their data, which are trained if they are missing."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeppatch.artifacts import Checkpoint, state_digest, tensors_from_bytes
from deeppatch.cli import main
from deeppatch.cli import options as command_line
from deeppatch.cli.context import Context
from deeppatch.cli.locating import run_folder
from deeppatch.cli.parsing import parse
from deeppatch.cli.predecessors import given_or_read, restore
from deeppatch.cli.pretrain import command as pretrain
from deeppatch.data.names import MIXES
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.modular.modules import Modules
from deeppatch.modular.weak_networks import FITS, mix_of, published_weak_network
from deeppatch.progress import info
from deeppatch.storage import RECORD, is_of, read_given, sha256
from deeppatch.zoo.classifier import Classifier

TUNED = "weights.safetensors"  # what modularize --tune_epochs leaves beside the modules


def read_modules(context: Context, base: Classifier) -> tuple[Classifier, Modules, str]:
    """Return the strong model, its modules, and the hash of their file.

    The strong model is the base, or the network that modularize has tuned and left beside the modules.
    """
    found = context.found["modules"]
    path, command = found.path, found.command
    content = given_or_read(context, found)
    modules = Modules.from_bytes(content, path)
    strong = base
    if modules.base != state_digest(base.state_dict()):
        strong = _tuned(context, path.with_name(TUNED)) or base
    if modules.base != state_digest(strong.state_dict()):
        raise StaleArtifact(
            f"{path} was made on other weights than those of the base, and no network of these modules lies beside it, "
            f"as modularize --tune_epochs leaves it in {TUNED}; copy that file there, or split the base: {command}"
        )
    info(f"inherited {path} ({modules.classes} modules)")
    return strong, modules, sha256(content)


def _tuned(context: Context, path: Path) -> Classifier | None:
    """Return the network that modularize has tuned; None where it has not."""
    if not path.is_file():
        return None
    content = read_given(path)
    context.stage.inherit(path, content)
    return restore(context, tensors_from_bytes(content, path)[0], path)


def targets(context: Context) -> list[int]:
    """Return the indices of the classes to correct; UserError when --target is no class."""
    target, names = context.options.target, context.source.classes
    possible = list(range(MIXES[mix_of(context.options.dataset)]))
    named = {name: index for index, name in enumerate(names) if index in possible} | {str(n): n for n in possible}
    if target != "all" and target not in named:
        raise UserError(f"--target {target}: choose all, or of {', '.join(f'{n} {names[n]}' for n in possible)}")
    return possible if target == "all" else [named[target]]


def weak_context(context: Context, target: int) -> Context:
    """Return the context of the weak model and the data that it was trained on, for the same run of the stage."""
    options: Any = context.options
    weak = options.weak or published_weak_network(options.model, options.dataset, options.fit)
    changed = replace(options, model=weak, dataset=f"{mix_of(options.dataset)}:{target}", weights=None)
    return Context(changed, context.device, context.stage)


def weak_model(context: Context) -> Classifier:
    """Return the weak model of a `weak_context`; if it is missing, it is trained as by pretrain."""
    path, command = prepare_weak_model(context)
    state, _ = tensors_from_bytes(context.stage.read(path, command), path)
    origin = context.stage.read_json(path.parent / "metrics.json", command, weights=str)["weights"]
    info(f"inherited {path} ({origin})")
    return restore(context, state, path)


def prepare_weak_model(context: Context) -> tuple[Path, str]:
    """Return the weights file of a `weak_context`, which is trained if needed, and the command that makes it."""
    options, (recipe, file) = context.options, FITS[context.options.fit]
    command = context.command("pretrain", recipe=recipe)
    command += f" -e {options.weak_epoch}" if options.weak_epoch else ""
    words = shlex.split(command)[len(shlex.split(command_line.call(options.prefix, "pretrain"))) :]
    words += ["--device", options.device, "--gpu", str(options.gpu)]
    words += ["--amp"] * options.amp
    folder = run_folder("pretrain", parse(pretrain, words, options.prefix), {})
    if not (folder / RECORD).is_file():
        info(f"there is no weak model yet; training it as by: {command}")
        main.run("eval", words + ["-r"] * options.resume, options.prefix)
    context.stage.read(folder / file, command)
    return folder / file, command


def composed(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the comparisons that an interrupted run has finished, by class; StaleArtifact where they are none."""
    kinds = {
        "base": str, "range_images": int, "test_images": int, "ranges": {str: object}, "metrics": {str: {str: float}},
    }  # fmt: skip
    done = checkpoint.load() or {}
    with checkpoint.undamaged():
        if not all(is_of(found[name], kind) for found in done.values() for name, kind in kinds.items()):
            raise ValueError("no comparisons")
    return done
