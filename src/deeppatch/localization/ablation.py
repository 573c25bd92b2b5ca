"""Count the degraded images that a network classifies correctly when one of its channels is ablated or swapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from deeppatch import runtime
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import captured, convolutions, hooked
from deeppatch.graph.network_graph import Graph
from deeppatch.localization.channel_delta import ChannelDelta, Downstream

Value = TypeVar("Value")
# filters that each rank evaluates between two exchanges of results
FILTERS_PER_EXCHANGE = 8


@dataclass(frozen=True)
class DegradedBatch:
    """A batch of degraded images as the network reads it.

    Args:
        degraded: Normalised degraded images (N, C, H, W).
        labels: Their labels, int64 (N,).
        clean: The same images without degradation, normalised (N, C, H, W); only some methods need them.
    """

    degraded: Tensor
    labels: Tensor
    clean: Tensor | None = None


@dataclass
class CorrectCounts:
    """The numbers of correctly classified images so far.

    Args:
        batches: The number of finished batches.
        images: The number of images in them.
        unedited: How many of these the unedited network classifies correctly.
        correct: For each layer, how many are classified correctly under the edit of each filter.
        current: The same for the filters of the unfinished batch that have been evaluated.
    """

    batches: int = 0
    images: int = 0
    unedited: int = 0
    correct: dict[str, list[int]] = field(default_factory=dict)
    current: dict[str, list[int]] = field(default_factory=dict)

    def load(self, state: dict[str, Any]) -> None:
        """Take the values of a state by name; KeyError where one is missing."""
        for name in vars(self):
            setattr(self, name, state[name])

    def scores(self, sign: int) -> Scores:
        """Return the change in accuracy caused by the edit of each filter, in [-1, 1], times `sign`."""
        return {
            name: [sign * (count - self.unedited) / self.images for count in row] for name, row in self.correct.items()
        }


Scores = dict[str, list[float]]
# the channels of each layer to edit; counts and scores have the same order
Filters = Mapping[str, Sequence[int]]
# the relative cost of an edit of one channel of each layer
Costs = Mapping[str, int]
# the logits (N, classes) of a batch when a channel of a layer is edited; None for no edit
EditedLogits = Callable[[str | None, int], Tensor]
# computes for a batch what all edits share, and returns the function that evaluates one edit
Ablation = Callable[[DegradedBatch], EditedLogits]


@torch.inference_mode()
def count_correct(
    batches: Iterable[DegradedBatch],
    filters: Filters,
    ablation: Ablation,
    counts: CorrectCounts,
    *,
    save: Callable[[CorrectCounts], object] = lambda _counts: None,
    tick: Callable[[str], object] = lambda _layer: None,
    costs: Costs | None = None,
) -> CorrectCounts:
    """Count correctly classified images under the edit of each of `filters`, batch by batch.

    Perfloss and featswap are differences of these counts (TOSEM 2023). With several ranks, the filters of each batch
    are distributed among them by `costs`, and all ranks return the same counts.

    Args:
        batches: The degraded images, in a fixed order.
        filters: The channels of each layer to edit.
        ablation: How a channel is edited.
        counts: The counts of an interrupted run; its batches are read again but not evaluated.
        save: Receives the counts after each filter.
        tick: Receives the name of the layer after each filter.
        costs: The relative cost of a filter in each layer (default: equal).

    Returns:
        `counts`, updated in place.
    """
    for index, batch in enumerate(batches):
        if index < counts.batches:
            continue
        edited = ablation(batch)
        evaluate = partial(_count_correct_predictions, edited, batch)
        evaluate_filters(counts.current, filters, evaluate, lambda: save(counts), tick, costs)
        for name, row in counts.current.items():
            before = counts.correct.get(name, [0] * len(row))
            counts.correct[name] = [old + new for old, new in zip(before, row, strict=True)]
        counts.unedited += evaluate(None, 0)
        del edited, evaluate  # frees the feature maps before those of the next batch are computed
        counts.images += len(batch.labels)
        counts.batches, counts.current = index + 1, {}
    return counts


def correct_predictions(edited: EditedLogits, batch: DegradedBatch, name: str | None, channel: int) -> Tensor:
    """Return which images of a batch are classified correctly under an edit, bool (N,) on the CPU.

    Without a layer `name` the network is not edited.
    """
    return (edited(name, channel).argmax(1) == batch.labels).cpu()


def _count_correct_predictions(edited: EditedLogits, batch: DegradedBatch, name: str | None, channel: int) -> int:
    return int(correct_predictions(edited, batch, name, channel).sum())


def evaluate_filters(
    results: dict[str, list[Value]],
    filters: Filters,
    evaluate: Callable[[str, int], Value],
    save: Callable[[], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> None:
    """Evaluate the filters that have no result yet, and append their results in place.

    With several ranks, the filters are distributed among them by `costs`, a few at a time, and results are exchanged.

    Args:
        results: For each layer, the results of its first filters; the others are appended.
        filters: The channels of each layer.
        evaluate: Returns the result for a channel of a layer, on the CPU.
        save: Is called after each filter.
        tick: Receives the name of the layer after each filter.
        costs: The relative cost of a filter in each layer (default: equal).
    """
    for name in filters:
        results.setdefault(name, [])
    missing = [(name, channel) for name, channels in filters.items() for channel in channels[len(results[name]) :]]
    size = 1 if runtime.ranks() == 1 else FILTERS_PER_EXCHANGE * runtime.ranks()
    for part in (missing[start : start + size] for start in range(0, len(missing), size)):
        shared = {name: [channel for layer, channel in part if layer == name] for name, _ in part}
        own = ranks.distribute_by_cost(shared, costs or dict.fromkeys(shared, 1), runtime.ranks())[runtime.rank()]
        values = {}
        for name, channels in own.items():
            for channel in channels:
                values[name, channel] = evaluate(name, channel)
                tick(name)
        gathered = {key: value for of_rank in ranks.all_gather(values) for key, value in of_rank.items()}
        for name, channel in part:
            results[name].append(gathered[name, channel])
        save()


def graph_ablation(graph: Graph, *, swap: bool, dtype: torch.dtype = torch.float32) -> Ablation:
    """Return the fast ablation: one forward pass, and for each filter only the steps that its edit affects.

    An edit sets a channel to zero before the normalisation that follows its convolution. With `swap` it replaces the
    channel by that of the clean version of the same images.
    """
    downstream = cache(lambda name: Downstream(graph, graph.convs[name]))
    graph.module.to(dtype)

    def prepare(batch: DegradedBatch) -> EditedLogits:
        base = graph.run(batch.degraded.to(dtype))
        source = _convolution_outputs(graph, _clean(batch).to(dtype)) if swap else {}

        def edited(name: str | None, channel: int) -> Tensor:
            if name is None:
                return base[graph.output]
            node = graph.convs[name]
            silenced = graph.silenced[name][channel].to(dtype).expand_as(base[node][:, :1])
            values = source[node][:, channel : channel + 1] if swap else silenced
            return downstream(name).run(ChannelDelta(channel, values), base)

        return edited

    return prepare


def _convolution_outputs(graph: Graph, images: Tensor) -> dict[fx.Node, Tensor]:
    values = graph.run(images)
    return {node: values[node] for node in graph.convs.values()}


def bytes_per_image(network: nn.Module, example: Tensor) -> int:
    """Return the memory in bytes that the outputs of all modules take for one image of `example` (N, C, H, W)."""
    sizes = []
    with ExitStack() as stack, torch.no_grad():
        for module in (candidate for candidate in network.modules() if not list(candidate.children())):
            stack.enter_context(hooked(module, lambda _module, _inputs, output: sizes.append(_bytes(output))))
        network.eval()(example)
    return max(1, sum(sizes) // len(example))


def _bytes(output: Any) -> int:
    """Return the bytes of a module's output: a tensor, or tensors in tuples, lists or dicts."""
    return sum(value.nbytes for value in tree_leaves(output) if isinstance(value, Tensor))


def hook_ablation(network: nn.Module, *, swap: bool, amp: bool = False) -> Ablation:
    """Return the plain ablation, for networks that cannot be traced: a full forward pass for each filter."""
    layers = convolutions(network)
    network.eval()

    def logits(images: Tensor) -> Tensor:
        with runtime.autocast(images.device, amp):
            return network(images)

    @lru_cache(maxsize=1)  # keeps the feature maps of one layer at a time
    def clean_maps(name: str, images: Tensor) -> Tensor:
        with captured(layers[name]) as outputs:
            logits(images)
        return outputs[0]

    def prepare(batch: DegradedBatch) -> EditedLogits:
        clean_maps.cache_clear()

        def edited(name: str | None, channel: int) -> Tensor:
            if name is None:
                return logits(batch.degraded)
            source = clean_maps(name, _clean(batch))[:, channel] if swap else 0

            def edit(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
                output[:, channel] = source
                return output

            with hooked(layers[name], edit):
                return logits(batch.degraded)

        return edited

    return prepare


def _clean(batch: DegradedBatch) -> Tensor:
    if batch.clean is None:
        raise ValueError("featswap needs the clean version of every batch")
    return batch.clean
