"""Count the degraded images that a network classifies correctly when one of its channels is edited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from deeppatch import runtime
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import captured, convolutions, hooked
from deeppatch.graph.network_graph import Graph
from deeppatch.localization.channel_delta import ChannelDelta, Downstream

Value = TypeVar("Value")
# filters of each rank between two exchanges of what the ranks have found
FILTERS_PER_EXCHANGE = 8


@dataclass(frozen=True)
class DegradedBatch:
    """A batch as the network reads it: normalised degraded images (N, C, H, W), labels (N,), and the clean images.

    `clean` holds the same images without degradation, normalised (N, C, H, W); only some methods need it.
    """

    degraded: Tensor
    labels: Tensor
    clean: Tensor | None = None


@dataclass
class CorrectCounts:
    """The numbers of correct answers so far: `batches` are finished, with `images` images.

    `unedited` counts correct answers of the network as it is, `correct` those under the edit of each filter, by layer.
    `current` holds the filters of the unfinished batch that are done.
    """

    batches: int = 0
    images: int = 0
    unedited: int = 0
    correct: dict[str, list[int]] = field(default_factory=dict)
    current: dict[str, list[int]] = field(default_factory=dict)

    def scores(self, sign: int) -> Scores:
        """Return the change of accuracy by an edit of each filter, in [-1, 1], times `sign`."""
        return {
            name: [sign * (count - self.unedited) / self.images for count in row] for name, row in self.correct.items()
        }


Scores = dict[str, list[float]]
# the channels of each layer that are ablated; counts and scores follow their order
Filters = Mapping[str, Sequence[int]]
# the relative cost of an edit of one channel of each layer
Costs = Mapping[str, int]
# the logits (N, classes) of a batch when a channel of a layer is edited; None for no edit
EditedLogits = Callable[[str | None, int], Tensor]
# computes once what all edits of a batch share
Ablation = Callable[[DegradedBatch], EditedLogits]


@torch.inference_mode()
def count_correct(
    batches: Iterable[DegradedBatch],
    filters: Filters,
    ablation: Ablation,
    counts: CorrectCounts,
    keep: Callable[[CorrectCounts], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> CorrectCounts:
    """Count correct answers under the edit of each of `filters`, batch by batch.

    Perfloss and featswap are differences of these counts (TOSEM 2023). Several ranks share the filters of a batch by
    `costs` and hold the same counts.

    Args:
        batches: The degraded images, in a fixed order.
        filters: The channels of each layer to edit.
        ablation: How a channel is edited.
        counts: What an earlier run has counted; its batches are read again but not evaluated.
        keep: Receives the counts after each filter.
        tick: Receives the layer's name after each filter.
        costs: The relative cost of a filter in each layer; equal for all where it is not given.

    Returns:
        `counts`, updated in place.
    """
    for index, batch in enumerate(batches):
        if index < counts.batches:
            continue
        edited = ablation(batch)
        evaluate = partial(_number_correct, edited, batch)
        evaluate_filters(counts.current, filters, evaluate, lambda: keep(counts), tick, costs)
        for name, row in counts.current.items():
            before = counts.correct.get(name, [0] * len(row))
            counts.correct[name] = [old + new for old, new in zip(before, row, strict=True)]
        counts.unedited += evaluate(None, 0)
        del edited, evaluate  # frees the maps before those of the next batch are computed
        counts.images += len(batch.labels)
        counts.batches, counts.current = index + 1, {}
    return counts


def correct_images(edited: EditedLogits, batch: DegradedBatch, name: str | None, channel: int) -> Tensor:
    """Return which images of a batch are classified correctly under an edit, bool (N,) on the CPU; None for no edit."""
    return (edited(name, channel).argmax(1) == batch.labels).cpu()


def _number_correct(edited: EditedLogits, batch: DegradedBatch, name: str | None, channel: int) -> int:
    return int(correct_images(edited, batch, name, channel).sum())


def evaluate_filters(
    found: dict[str, list[Value]],
    filters: Filters,
    evaluate: Callable[[str, int], Value],
    keep: Callable[[], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> None:
    """Complete the rows `found` of each layer with what `evaluate` returns for its filters, on the CPU.

    `keep` is called after each filter, `tick` with its layer. Several ranks share the filters by `costs` (of one filter
    in each layer; equal for all where not given), a few at a time, and exchange what they found.
    """
    for name in filters:
        found.setdefault(name, [])
    missing = [(name, channel) for name, channels in filters.items() for channel in channels[len(found[name]) :]]
    size = 1 if runtime.ranks() == 1 else FILTERS_PER_EXCHANGE * runtime.ranks()
    for part in (missing[start : start + size] for start in range(0, len(missing), size)):
        shared = {name: [channel for layer, channel in part if layer == name] for name, _ in part}
        own = ranks.share_out(shared, costs or dict.fromkeys(shared, 1), runtime.ranks())[runtime.rank()]
        values = {}
        for name, channels in own.items():
            for channel in channels:
                values[name, channel] = evaluate(name, channel)
                tick(name)
        gathered = {key: value for each in ranks.all_gather(values) for key, value in each.items()}
        for name, channel in part:
            found[name].append(gathered[name, channel])
        keep()


def in_graph(graph: Graph, *, swap: bool, dtype: torch.dtype = torch.float32) -> Ablation:
    """Return the fast ablation: one pass of the graph, and for each filter only the steps that its edit changes.

    An edit sets a channel to zero before the normalisation that follows its convolution, or with `swap` to the values
    that the clean version of the same images has there.
    """
    downstream = cache(lambda name: Downstream(graph, graph.convs[name]))
    graph.module.to(dtype)

    def prepare(batch: DegradedBatch) -> EditedLogits:
        base = graph.run(batch.degraded.to(dtype))
        source = _convolved(graph, _clean(batch).to(dtype)) if swap else {}

        def edited(name: str | None, channel: int) -> Tensor:
            if name is None:
                return base[graph.output]
            node = graph.convs[name]
            silent = graph.silent[name][channel].to(dtype).expand_as(base[node][:, :1])
            values = source[node][:, channel : channel + 1] if swap else silent
            return downstream(name).run(ChannelDelta(channel, values), base)

        return edited

    return prepare


def _convolved(graph: Graph, images: Tensor) -> dict[fx.Node, Tensor]:
    values = graph.run(images)
    return {node: values[node] for node in graph.convs.values()}


def bytes_an_image(network: nn.Module, example: Tensor) -> int:
    """Return the bytes that the outputs of all modules take, for one of the images (N, C, H, W)."""
    found = []
    with ExitStack() as stack, torch.no_grad():
        for module in (each for each in network.modules() if not list(each.children())):
            stack.enter_context(hooked(module, lambda _module, _inputs, output: found.append(output.nbytes)))
        network.eval()(example)
    return sum(found) // len(example)


def by_hooks(network: nn.Module, *, swap: bool, amp: bool = False) -> Ablation:
    """Return the plain ablation, for networks that cannot be traced: a whole forward pass for each filter."""
    layers = convolutions(network)
    network.eval()

    def logits(images: Tensor) -> Tensor:
        with runtime.autocast(images.device, amp):
            return network(images)

    @lru_cache(maxsize=1)  # the maps of one layer at a time
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
