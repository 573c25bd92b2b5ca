"""The searches of modularize: by gradient on train, and by generations on one half of val."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from deeppatch.commands.analysing import Subject
from deeppatch.data import views
from deeppatch.data.splits import halves, subset
from deeppatch.modular import gradient
from deeppatch.modular.genetic import Search
from deeppatch.modular.genome import Genome
from deeppatch.modular.heads import Heads
from deeppatch.modular.importance import orders
from deeppatch.modular.masking import EVALUATORS, by_slices
from deeppatch.modular.presets import PRESETS, thresholds
from deeppatch.training import accuracy, fit, predict, two_rates

# masks (classes, kernels) by layer, heads if there are any, and one row for each generation or epoch
Found = tuple[Sequence[Tensor], Heads | None, pd.DataFrame]


def modules_name(options: argparse.Namespace) -> str:
    """Return the start of the name of modularize's folder: by method, head and preset."""
    parts = ["modularize", options.method]
    parts += ["no-head"] if getattr(options, "no_head", False) else []
    parts += [options.preset] if getattr(options, "preset", "auto") != "auto" else []
    return "-".join(parts)


def by_gradient(subject: Subject) -> Found:
    """Train thresholds and heads on train; val chooses the epoch."""
    context, options = subject.context, subject.context.options
    train, val = context.splits.train, views.clean(context.splits.val, 64)
    if options.search_images:
        train = subset(train, options.search_images, options.seed, context.source.name)
    steps = -(-len(train) // gradient.BATCH)
    first = gradient.first_thresholds(subject.importance, 2 * steps * options.lr)  # about two epochs away from zero
    frozen = (subject.model.normalize, subject.network)
    splitter = gradient.Splitter(frozen, subject.layers, first, head=not options.no_head).to(context.device)
    count = options.budget or gradient.EPOCHS
    streams = gradient.epochs(splitter, train, gradient.BATCH, options.seed, count)
    optimizer, schedule = two_rates(
        splitter.thresholds.parameters(), splitter.heads.parameters() if splitter.heads else [], lr=options.lr,
        early=10 * options.lr, steps=steps * gradient.WARM_UP,
    )  # fmt: skip
    strong = accuracy(predict(subject.model, val, label="strong model"), val.labels)
    choose = gradient.chosen(strong, options.max_drop / 100)
    history = fit(
        splitter, streams, lambda model: accuracy(predict(model, val), val.labels), loss=gradient.loss(options.alpha),
        optimizer=optimizer, schedule=schedule, checkpoint=subject.checkpoint("checkpoint.pt"),
        watch=lambda _model: splitter.kept().item(), choose=choose, amp=options.amp, label="modules",
    )  # fmt: skip
    frame = pd.DataFrame({"loss": history.loss, "holdout_accuracy": history.accuracy, "kept": history.watched})
    frame["best"] = frame.index == choose(history)
    return [mask.detach() for mask in splitter.masks()], splitter.heads, frame


def by_generations(subject: Subject) -> Found:
    """Search on one half of val; the other chooses the generation."""
    context, options = subject.context, subject.context.options
    preset, evaluate = PRESETS[options.preset], EVALUATORS[options.evaluator]
    searched, held_out = halves(context.splits.val, options.seed, context.source.name)
    if options.search_images:
        searched = subset(searched, options.search_images, options.seed, context.source.name)
    x, unseen = subject.inputs(searched), subject.inputs(held_out)

    def composed(kept: Sequence[Tensor]) -> float:
        scores = by_slices(subject.network, subject.layers, kept, unseen).diagonal(dim1=0, dim2=2)
        return accuracy(scores.argmax(1), held_out.labels)

    with torch.inference_mode():
        strong = accuracy(subject.network(x).argmax(1), searched.labels)
    search = Search(
        [Genome(orders(subject.importance, number)) for number in range(subject.classes)],
        lambda number, kept: evaluate(subject.network, subject.layers, kept, x)[:, :, number],
        composed, searched.labels,
        torch.cat([torch.full((layer.kernels,), float(len(layer.convs))) for layer in subject.layers]).to(x.device),
        preset, subject.sensitive if preset.sensitive is None else preset.sensitive,
        thresholds(preset, subject.classes, strong), options.seed,
    )  # fmt: skip
    masks, record = search.run(
        options.budget or preset.generations, patience=options.patience, checkpoint=subject.checkpoint("checkpoint.pt")
    )
    frame = pd.DataFrame({
        "search_accuracy": record.search, "holdout_accuracy": record.holdout, "unlike": record.unlike,
        "kept": record.kept, "value": record.value, "evaluated": record.evaluated,
    })  # fmt: skip
    frame["best"] = frame.index == record.best
    return masks, None, frame


SEARCHES: dict[str, Callable[[Subject], Found]] = {"grad": by_gradient, "ga": by_generations}
