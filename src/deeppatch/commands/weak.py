"""The weak models that compose corrects: which network and data, and where pretrain leaves or would leave them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from deeppatch import commands
from deeppatch import options as command_line
from deeppatch.artifacts import RECORD, tensors_from_bytes
from deeppatch.commands.context import Context
from deeppatch.commands.models import restore
from deeppatch.data import sources
from deeppatch.errors import UserError
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier

# the weak model's data, by the strong one's
MIXES = {
    "cifar10": "cifar10-mix", "svhn": "svhn-mix", "svhn_5": "svhn-mix", "digits": "digits-mix", "digits_5": "digits-mix"
}  # fmt: skip
SIMPLE = {
    "cifar10-mix": {"simcnn": "simcnn_weak", "rescnn": "rescnn_weak"},
    "svhn-mix": {"simcnn": "simcnn_svhn_weak", "rescnn": "rescnn_svhn_weak"},
    "digits-mix": {"simcnn": "simcnn_svhn_weak", "rescnn": "rescnn_svhn_weak"},
}
POORFIT = {"simcnn": "simcnn_poorfit", "rescnn": "rescnn_poorfit"}
# how a weak model came to be weak: pretrain's recipe, and the file that it leaves
FITS = {
    "simple": ("weak", "weights.safetensors"),
    "overfitted": ("poorfit", "weights.safetensors"),
    "underfitted": ("poorfit", "weights-underfitted.safetensors"),
}


def mix_of(dataset: str) -> str:
    """Return the mix that goes with a strong model's data; UserError where there is none."""
    if dataset not in MIXES:
        raise UserError(f"-d {dataset}: there is no mix for weak models of it; use {', '.join(MIXES)}")
    return MIXES[dataset]


def usual(options: argparse.Namespace) -> str:
    """Return the published weak network for strong network, data and fit."""
    by_family = SIMPLE[mix_of(options.dataset)] if options.fit == "simple" else POORFIT
    return by_family["rescnn" if options.model.startswith("rescnn") else "simcnn"]


def targets(context: Context) -> list[int]:
    """Return the classes to correct, as the strong model counts them; UserError where --target names none."""
    asked, names = context.options.target, context.source.classes
    possible = list(range(sources.MIXES[mix_of(context.options.dataset)][1]))
    named = {name: place for place, name in enumerate(names) if place in possible} | {str(n): n for n in possible}
    if asked != "all" and asked not in named:
        raise UserError(f"--target {asked}: choose all, or of {', '.join(f'{n} {names[n]}' for n in possible)}")
    return possible if asked == "all" else [named[asked]]


def weak_context(context: Context, target: int) -> Context:
    """Return the same run of the same stage, with the weak model and the data that it was trained on."""
    dataset = f"{mix_of(context.options.dataset)}:{target}"
    changes = {"model": context.options.weak or usual(context.options), "dataset": dataset, "weights": None}
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
    commands.run("eval", words, options.prefix)
