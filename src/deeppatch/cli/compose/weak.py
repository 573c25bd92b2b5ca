"""The weak models that compose corrects: which network and data, and where pretrain leaves or would leave them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from deeppatch.artifacts import RECORD, tensors_from_bytes
from deeppatch.cli import main
from deeppatch.cli import options as command_line
from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import restore
from deeppatch.data.names import MIXES
from deeppatch.errors import UserError
from deeppatch.modular.weak_networks import FITS, mix_of, published_weak_network
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


def targets(context: Context) -> list[int]:
    """Return the classes to correct, as the strong model counts them; UserError where --target names none."""
    asked, names = context.options.target, context.source.classes
    possible = list(range(MIXES[mix_of(context.options.dataset)]))
    named = {name: place for place, name in enumerate(names) if place in possible} | {str(n): n for n in possible}
    if asked != "all" and asked not in named:
        raise UserError(f"--target {asked}: choose all, or of {', '.join(f'{n} {names[n]}' for n in possible)}")
    return possible if asked == "all" else [named[asked]]


def weak_context(context: Context, target: int) -> Context:
    """Return the same run of the same stage, with the weak model and the data that it was trained on."""
    dataset = f"{mix_of(context.options.dataset)}:{target}"
    changes = {
        "model": context.options.weak
        or published_weak_network(context.options.model, context.options.dataset, context.options.fit),
        "dataset": dataset,
        "weights": None,
    }
    return Context(argparse.Namespace(**{**vars(context.options), **changes}), context.device, context.stage)


def weak_model(context: Context) -> Classifier:
    """Return the weak model of a `weak_context`; one that pretrain has not left is trained as pretrain does it."""
    path, command = prepared(context)
    state, _ = tensors_from_bytes(context.stage.read(path, command), path)
    made = json.loads(context.stage.read(path.parent / "metrics.json", command))["weights"]
    info(f"inherited {path} ({made})")
    return restore(context, state, path)


def prepared(context: Context) -> tuple[Path, str]:
    """Return the weights file of a `weak_context`, trained if need be, and the command that makes it."""
    recipe, file = FITS[context.options.fit]
    folder = context.folder("pretrain")
    command = context.command("pretrain", recipe=recipe)
    if not (folder / RECORD).is_file():
        train(context, command)
    context.stage.read(folder / file, command)
    return folder / file, command


def train(context: Context, command: str) -> None:
    """Run pretrain for a weak model, as `command` spells it, on this run's device."""
    options = context.options
    info(f"there is no weak model yet; as by: {command}")
    words = shlex.split(command)[len(shlex.split(command_line.call(options.prefix, "pretrain"))) :]
    words += ["-e", str(options.weak_epoch)] if options.weak_epoch else []
    words += ["--device", options.device, "--gpu", str(options.gpu)]
    words += ["--amp"] * options.amp + ["-r"] * options.resume
    main.run("eval", words, options.prefix)
