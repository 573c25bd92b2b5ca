"""How each correction that -c names is made; a runner reads its inputs, and returns None where it has finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from deeppatch.artifacts import state_digest, tensors_to_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.correct.inputs import chosen_filters
from deeppatch.cli.correct.report import Correction
from deeppatch.cli.correct.statistics import run_statistics
from deeppatch.cli.corrections import PEER_OPTIONS
from deeppatch.cli.predecessors import load_finetuned
from deeppatch.data import views
from deeppatch.data.epochs import (
    ChosenEpochs,
    StreamInputs,
    TrainingStream,
    clean_stream,
    count_passes,
    degraded_epochs,
)
from deeppatch.patching.training import train_patch
from deeppatch.retrain.apricot import apricot
from deeppatch.retrain.augmix import augmix
from deeppatch.retrain.bank_fitting import fit_bank
from deeppatch.retrain.finetune import finetune
from deeppatch.retrain.gini import gini
from deeppatch.retrain.interpolate import interpolate
from deeppatch.retrain.norms import norms
from deeppatch.retrain.robot import robot
from deeppatch.retrain.sensei import SenseiStream, sensei
from deeppatch.retrain.surgical import surgical
from deeppatch.training import History
from deeppatch.zoo.classifier import Classifier

Runner = Callable[[Context, Classifier], Correction | None]


def run_patch(context: Context, model: Classifier) -> Correction | None:
    """Train a patch for the filters that the ranking chooses."""
    channels, facts = chosen_filters(context, model)
    if context.already_finished():
        return None
    options, data = context.options, context.data
    checkpoint = context.checkpoint(base=state_digest(model.state_dict()), channels=channels)
    made: list[ChosenEpochs] = []
    patch = train_patch(
        model,
        data,
        context.corruption,
        channels,
        kind=options.crt_type,
        init=options.init,
        stream=_stream(options, made),
        checkpoint=checkpoint,
        **_training(context),
    )
    assert patch.history is not None
    epochs = degraded_epochs(
        data.train, context.corruption, epochs=options.crt_epoch, passes=options.passes, batch_size=options.batch_size
    )
    validated = len(views.append(data.val, context.corruption, options.batch_size).index)
    facts = {"kind": options.crt_type, **({"init": options.init} if options.init != "original" else {}), **facts}
    passes = count_passes(epochs, validated)
    for each in made:
        facts |= {"train_on": options.train_on, **each.facts()}
        passes += each.spent()
    return Correction("patch.safetensors", patch.to_bytes(), passes, patch.history, facts=facts)


def _stream(options: Any, made: list[ChosenEpochs]) -> TrainingStream | None:
    """Return what chooses the images of --train_on, which notes in `made` what it has made; None for the usual ones."""
    if options.train_on == "degraded":
        return None
    own = {name: getattr(options, name) for name in PEER_OPTIONS["sensei"]}
    stream: TrainingStream = clean_stream if options.train_on == "clean" else SenseiStream(**own)

    def noting(inputs: StreamInputs) -> ChosenEpochs:
        made.append(stream(inputs))
        return made[-1]

    return noting


def run_whole(train: Callable[..., nn.Module], context: Context, model: Classifier, **own: Any) -> Correction | None:
    """Train a network as a whole by a function with the arguments of `finetune`, and those of its own.

    What it returns has the attributes `history` (None where nothing was trained) and `passes`, and may have `facts` for
    metrics.json, `tables` and `documents` by the name of their file, and `stored_bytes`.
    """
    if context.already_finished():
        return None
    base = state_digest(model.state_dict())
    checkpoint = context.checkpoint(base=base)
    found = train(model, context.data, context.corruption, checkpoint=checkpoint, **_training(context), **own)
    return _network(context, found, base)


def run_peer(name: str, context: Context, model: Classifier) -> Correction | None:
    """Train a network by a method of another paper, with the options that are its own."""
    own = {option: getattr(context.options, option) for option in PEER_OPTIONS[name]}
    return run_whole(PEERS[name], context, model, **own)


def run_interpolate(context: Context, model: Classifier) -> Correction | None:
    """Choose a network between the base and the fine-tuned one."""
    tuned = load_finetuned(context, model)
    if context.already_finished():
        return None
    base, options = state_digest(model.state_dict()), context.options
    found = interpolate(
        model,
        tuned,
        context.data,
        context.corruption,
        statistics=options.statistics,
        max_clean_drop=1.0 if options.max_clean_drop is None else options.max_clean_drop,
        checkpoint=context.checkpoint(base=base, finetuned=state_digest(tuned.state_dict())),
        **_machine(context),
    )
    return _network(context, found, base)


def run_bank(context: Context, model: Classifier) -> Correction | None:
    """Estimate statistics for each condition, and fit their selector."""
    if context.already_finished():
        return None
    options = context.options
    bank = fit_bank(
        model,
        context.data,
        context.corruption,
        conditions=options.conditions,
        max_clean_drop=0.1 if options.max_clean_drop is None else options.max_clean_drop,
        **_machine(context),
    )
    bank = replace(bank, about={**bank.about, **context.about})
    facts = {"conditions": list(bank.conditions), **bank.facts}
    return Correction("bank.safetensors", bank.to_bytes(), facts.pop("passes"), facts=facts)


def _network(context: Context, found: Any, base: str) -> Correction:
    """Return a network as a correction; its file says from which base it was made."""
    content = tensors_to_bytes(found.state_dict(), {"base": base, **context.about})
    history = found.history
    assert history is None or isinstance(history, History)
    return Correction(
        "weights.safetensors",
        content,
        found.passes,
        history,
        stored=getattr(found, "stored_bytes", None),
        facts=getattr(found, "facts", {}),
        tables=getattr(found, "tables", {}),
        documents=getattr(found, "documents", {}),
    )


def _training(context: Context) -> dict[str, Any]:
    options = context.options
    return {
        "epochs": options.crt_epoch,
        "passes": options.passes,
        "reseed": False,  # the stage has seeded torch
        **context.training_options(),
        **_machine(context),
    }


def _machine(context: Context) -> dict[str, Any]:
    return {name: getattr(context.options, name) for name in ("batch_size", "amp", "seed")}


PEERS: dict[str, Callable[..., nn.Module]] = {
    "sensei": sensei, "apricot": apricot, "robot": robot, "gini": gini, "augmix": augmix,
}  # fmt: skip
RUNNERS: dict[str, Runner] = {
    "patch": run_patch,
    "finetune": lambda context, model: run_whole(finetune, context, model),
    "interpolate": run_interpolate,
    "norms": lambda context, model: run_whole(norms, context, model),
    "bank": run_bank,
    "statistics": run_statistics,
    "surgical": lambda context, model: run_whole(surgical, context, model, block=context.options.block),
    **{name: partial(run_peer, name) for name in PEERS},
}
