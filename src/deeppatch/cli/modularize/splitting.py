"""The searches of modularize: by gradient on train, and by generations on one half of val."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.cli.modularize.analysing import Analysis
from deeppatch.data import views
from deeppatch.data.splits import halves, subset
from deeppatch.metrics import accuracy
from deeppatch.modular import gradient
from deeppatch.modular.genetic import Search
from deeppatch.modular.genome import Genome
from deeppatch.modular.heads import Heads
from deeppatch.modular.importance import orders
from deeppatch.modular.masking import EVALUATORS, by_slices, twins_of
from deeppatch.modular.presets import PRESETS, thresholds
from deeppatch.modular.winograd import optimize_for_cpu
from deeppatch.training import fit, predict, two_rates

SEARCHED = 2500  # images that rate candidates, by default: these are compared with each other, on the same ones
# masks (classes, kernels) by layer, heads if there are any, and one row for each generation or epoch
Found = tuple[Sequence[Tensor], Heads | None, pd.DataFrame]


def by_gradient(analysis: Analysis) -> Found:
    """Train thresholds and heads on train; val chooses the epoch."""
    context, options = analysis.context, analysis.context.options
    train, val = context.splits.train, views.clean(context.splits.val, 64)
    if options.search_images:
        train = subset(train, options.search_images, options.seed, context.source.name)
    steps = -(-len(train) // gradient.BATCH)
    first = gradient.first_thresholds(analysis.importance, 2 * steps * options.lr)  # about two epochs away from zero
    frozen = (analysis.model.normalize, analysis.network)
    splitter = gradient.Splitter(frozen, analysis.layers, first, head=not options.no_head).to(context.device)
    count = options.budget or gradient.EPOCHS
    streams = gradient.epochs(splitter, train, gradient.BATCH, options.seed, count)
    optimizer, schedule = two_rates(
        splitter.thresholds.parameters(),
        splitter.heads.parameters() if splitter.heads else [],
        lr=options.lr,
        early=10 * options.lr,
        steps=steps * gradient.WARM_UP,
    )
    strong = accuracy(predict(analysis.model, val, label="strong model"), val.labels)
    choose = gradient.chosen(strong, options.max_drop / 100)
    history = fit(
        splitter,
        streams,
        lambda model: accuracy(predict(model, val), val.labels),
        loss=gradient.loss(options.alpha),
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=analysis.checkpoint("checkpoint.pt"),
        watch=lambda _model: splitter.kept().item(),
        choose=choose,
        amp=options.amp,
        label="modules",
    )
    frame = pd.DataFrame({"loss": history.loss, "holdout_accuracy": history.accuracy, "kept": history.watched})
    frame["best"] = frame.index == choose(history)
    return [mask.detach() for mask in splitter.masks()], splitter.heads, frame


def by_generations(analysis: Analysis) -> Found:
    """Search on one half of val; the other chooses the generation."""
    context, options = analysis.context, analysis.context.options
    preset, evaluate = PRESETS[options.preset], EVALUATORS[options.evaluator]
    candidate: nn.Module = analysis.network
    searched, held_out = halves(context.splits.val, options.seed, context.source.name)
    searched = subset(searched, options.search_images or SEARCHED, options.seed, context.source.name)
    x, unseen = analysis.inputs(searched), analysis.inputs(held_out)
    if evaluate is by_slices:
        candidate = optimize_for_cpu(candidate)
        evaluate = partial(by_slices, twins=twins_of(candidate))

    known: list[dict[bytes, Tensor]] = [{} for _ in range(analysis.classes)]

    def composed(kept: Sequence[Tensor]) -> float:
        for number, last in enumerate(known):  # a class's winner often stays: then it is not run again
            own = [rows[number : number + 1] for rows in kept]
            key = torch.cat(own, 1).cpu().numpy().tobytes()
            if key not in last:
                known[number] = {key: by_slices(analysis.network, analysis.layers, own, unseen)[0, :, number]}
        scores = torch.stack([row for last in known for row in last.values()], 1)
        return accuracy(scores.argmax(1), held_out.labels)

    with torch.inference_mode():
        strong = accuracy(analysis.network(x).argmax(1), searched.labels)
    search = Search(
        [Genome(orders(analysis.importance, number)) for number in range(analysis.classes)],
        lambda number, kept, samples: evaluate(candidate, analysis.layers, kept, x[samples])[:, :, number],
        composed,
        searched.labels,
        torch.cat([torch.full((layer.kernels,), float(len(layer.convs))) for layer in analysis.layers]).to(x.device),
        preset,
        analysis.sensitive if preset.sensitive is None else preset.sensitive,
        thresholds(preset, analysis.classes, strong),
        options.seed,
    )
    masks, record = search.run(
        options.budget or preset.generations, patience=options.patience, checkpoint=analysis.checkpoint("checkpoint.pt")
    )
    frame = pd.DataFrame(
        {
            "search_accuracy": record.search,
            "holdout_accuracy": record.holdout,
            "unlike": record.unlike,
            "kept": record.kept,
            "value": record.value,
            "evaluated": record.evaluated,
            "passes": record.passes,
        }
    )
    frame["best"] = frame.index == record.best
    return masks, None, frame


SEARCHES: dict[str, Callable[[Analysis], Found]] = {"grad": by_gradient, "ga": by_generations}
