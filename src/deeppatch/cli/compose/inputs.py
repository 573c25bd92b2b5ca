"""What compose reads: modules, and weak models with their data, which it trains where pretrain has not left them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from deeppatch.artifacts import RECORD, sha256, state_digest, tensors_from_bytes
from deeppatch.cli import main
from deeppatch.cli import options as command_line
from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import restore
from deeppatch.data import sources
from deeppatch.errors import OtherBase, UserError
from deeppatch.modular.modules import Modules
from deeppatch.modular.weak_networks import FITS, mix_of, published_weak_network
from deeppatch.progress import info
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier


def check(dataset: str, weak: str | None) -> None:
    """UserError where the data have no mix for weak models, or there is no such weak network."""
    mix_of(dataset)
    if weak is not None and weak not in ARCHITECTURES:
        raise UserError(f"--weak {weak}: choose from {', '.join(sorted(ARCHITECTURES))}")


def read_modules(context: Context, strong: Classifier) -> tuple[Modules, str]:
    """Read what modularize left for the strong model, and the hash of its file."""
    path, command = context.locate("modularize", "modules.safetensors")
    content = context.stage.read(path, command)
    modules = Modules.from_bytes(content, path)
    if modules.base != state_digest(strong.state_dict()):
        raise OtherBase(path, command)
    info(f"inherited {path} ({modules.classes} modules)")
    return modules, sha256(content)


def targets(context: Context) -> list[int]:
    """Return the classes to correct, as the strong model counts them; UserError where --target names none."""
    asked, names = context.options.target, context.source.classes
    possible = list(range(sources.MIXES[mix_of(context.options.dataset)][1]))
    named = {name: index for index, name in enumerate(names) if index in possible} | {str(n): n for n in possible}
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
