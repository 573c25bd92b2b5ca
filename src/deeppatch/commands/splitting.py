"""What modularize does before it reports: importance and sensitivity of kernels, then the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, fx

from deeppatch.artifacts import state_digest
from deeppatch.commands.context import Context
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.data.splits import halves, subset
from deeppatch.modular import gradient, sensitivity
from deeppatch.modular.genetic import Search
from deeppatch.modular.genome import Genome
from deeppatch.modular.heads import Heads
from deeppatch.modular.importance import importances, orders
from deeppatch.modular.layers import Layer, find
from deeppatch.modular.masking import EVALUATORS, by_slices
from deeppatch.modular.presets import PRESETS, thresholds
from deeppatch.progress import info
from deeppatch.surgery import folded
from deeppatch.training import accuracy, fit, predict, two_rates
from deeppatch.zoo.classifier import Classifier

# masks (classes, kernels) by layer, heads if there are any, and one row for each generation or epoch
Found = tuple[Sequence[Tensor], Heads | None, pd.DataFrame]


@dataclass
class Subject:
    """A classifier, its network in inference form, that network's layers, and how important their kernels are."""

    CHECKPOINTS: ClassVar[tuple[str, str]] = ("analysis.pt", "checkpoint.pt")

    context: Context
    model: Classifier
    network: fx.GraphModule
    layers: list[Layer]
    importance: list[Tensor]
    sensitivity: Tensor

    @property
    def classes(self) -> int:
        """How many classes, and so modules, there are."""
        return len(self.context.source.classes)

    @property
    def sensitive(self) -> list[int]:
        """The sensitive layers, by place."""
        return sensitivity.sensitive(self.sensitivity, *self.context.options.sensitive)

    def inputs(self, images: Images) -> Tensor:
        """Return images as the network reads them, normalised, (N, C, H, W)."""
        x = self.model.normalize(torch.cat([pixels for pixels, _labels in views.clean(images, 1024)]))
        return x.contiguous(memory_format=torch.channels_last)

    def checkpoint(self, name: str) -> Any:
        """Return one of the two checkpoints of the stage."""
        return self.context.checkpoint(name, base=state_digest(self.model.state_dict()))


def analysed(context: Context, model: Classifier) -> Subject:
    """Measure importance and sensitivity on val, print and write the table; what an interrupted run has is read."""
    options, val = context.options, context.splits.val
    network = folded(model.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = find(network, model.normalize(context.example))
    subject = Subject(context, model, network, layers, [], torch.zeros(0))
    checkpoint = subject.checkpoint("analysis.pt")
    saved = checkpoint.load() or {}
    subject.importance = saved.get("importance") or importances(
        network, layers, subject.inputs(val), val.labels, subject.classes
    )
    some = subset(val, options.sensitivity_images, options.seed, context.source.name)

    def save(table: Tensor) -> None:
        checkpoint.save({"importance": subject.importance, "sensitivity": table})

    subject.sensitivity = sensitivity.measure(
        network, layers, subject.importance, subject.inputs(some), some.labels, save=save,
        table=saved.get("sensitivity"),
    )  # fmt: skip
    table = pd.DataFrame(100 * subject.sensitivity, columns=[f"{ratio:g}" for ratio in sensitivity.RATIOS])
    table.insert(0, "layer", [layer.name for layer in layers])
    table["sensitive"] = [place in subject.sensitive for place in range(len(layers))]
    context.stage.write_table("sensitivity.csv", table)
    info(f"composed accuracy in percent when modules keep a share of one layer, {len(some)} val images:")
    print(table.to_string(index=False, float_format="%.1f"))
    return subject


def by_gradient(subject: Subject) -> Found:
    """Train thresholds and heads on train; val chooses the epoch."""
    context, options = subject.context, subject.context.options
    train, val = context.splits.train, views.clean(context.splits.val, 64)
    if options.search_images:
        train = subset(train, options.search_images, options.seed, context.source.name)
    steps = -(-len(train) // gradient.BATCH)
    splitter = gradient.Splitter(
        (subject.model.normalize, subject.network), subject.layers, subject.classes,
        start=2 * steps * options.lr, head=not options.no_head,
    ).to(context.device)  # fmt: skip
    count = options.budget or gradient.EPOCHS
    streams = gradient.epochs(splitter, train, gradient.BATCH, options.seed, count)
    optimizer, schedule = two_rates(
        splitter.thresholds.parameters(), splitter.heads.parameters() if splitter.heads else [], lr=options.lr,
        early=10 * options.lr, steps=steps * gradient.WARM_UP,
    )  # fmt: skip
    strong = accuracy(predict(subject.model, val, label="strong model"), val.labels)
    choose = gradient.chosen(strong)
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
