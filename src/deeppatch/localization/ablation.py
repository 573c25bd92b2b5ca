"""Score every filter exactly: what the network still gets right on degraded images when one channel is edited."""

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
ROUND = 8  # filters that each of several ranks asks of before they put together what they found


@dataclass(frozen=True)
class Sample:
    """A batch as the network reads it: normalised degraded images, their clean versions (featswap), labels."""

    degraded: Tensor
    labels: Tensor
    clean: Tensor | None = None


@dataclass
class Counts:
    """How far a ranking has come: `samples` are done, and of the next one the filters of `right_now`.

    `base` and `right` count right answers over finished samples: without an edit, and by layer in its filters' order.
    """

    samples: int = 0
    images: int = 0
    base: int = 0
    right: dict[str, list[int]] = field(default_factory=dict)
    right_now: dict[str, list[int]] = field(default_factory=dict)

    def scores(self, sign: int) -> Scores:
        """Return the change of accuracy by an edit of each filter, in [-1, 1], times `sign`."""
        return {name: [sign * (count - self.base) / self.images for count in row] for name, row in self.right.items()}


Scores = dict[str, list[float]]
# the channels of each layer that are ablated; counts and scores follow their order
Filters = Mapping[str, Sequence[int]]
# what an edit of one channel of each layer takes
Costs = Mapping[str, int]
# the logits of one sample when a channel of a layer is edited; None for no edit
Edited = Callable[[str | None, int], Tensor]
# prepares a sample: what all its edits share is computed once
Ablation = Callable[[Sample], Edited]


@torch.inference_mode()
def count(
    samples: Iterable[Sample],
    filters: Filters,
    ablation: Ablation,
    counts: Counts,
    keep: Callable[[Counts], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> Counts:
    """Count right answers under the edit of each of `filters`, sample by sample.

    `counts` holds what an earlier run has counted; those samples are drawn and passed over. `keep` receives the counts
    after each filter, `tick` its layer. Perfloss and featswap are differences of these counts (TOSEM 2023). Several
    ranks share the filters of a sample out by `costs`, and keep the counts together.
    """
    for number, sample in enumerate(samples):
        if number < counts.samples:
            continue
        edited = ablation(sample)
        ask = partial(_number_right, edited, sample)
        answer(counts.right_now, filters, ask, lambda: keep(counts), tick, costs)
        for name, row in counts.right_now.items():
            before = counts.right.get(name, [0] * len(row))
            counts.right[name] = [old + new for old, new in zip(before, row, strict=True)]
        counts.base += ask(None, 0)
        del edited, ask  # its maps make room for those of the next sample
        counts.images += len(sample.labels)
        counts.samples, counts.right_now = number + 1, {}
    return counts


def right(edited: Edited, sample: Sample, name: str | None, channel: int) -> Tensor:
    """Return which images (N,) of a sample are right under an edit, on the CPU; None for no edit."""
    return (edited(name, channel).argmax(1) == sample.labels).cpu()


def _number_right(edited: Edited, sample: Sample, name: str | None, channel: int) -> int:
    return int(right(edited, sample, name, channel).sum())


def answer(
    found: dict[str, list[Value]],
    filters: Filters,
    ask: Callable[[str, int], Value],
    keep: Callable[[], object],
    tick: Callable[[str], object],
    costs: Costs | None = None,
) -> None:
    """Complete the rows `found` of each layer with what `ask` finds of its filters, which must be on the CPU.

    `keep` is called after each filter, `tick` with its layer. Several ranks share the filters out by `costs` (of one in
    each layer; default: all the same), a few at a time, and keep what they found together.
    """
    for name in filters:
        found.setdefault(name, [])
    left = [(name, channel) for name, channels in filters.items() for channel in channels[len(found[name]) :]]
    size = 1 if runtime.ranks() == 1 else ROUND * runtime.ranks()
    for part in (left[start : start + size] for start in range(0, len(left), size)):
        shared = {name: [channel for layer, channel in part if layer == name] for name, _ in part}
        mine = ranks.share_out(shared, costs or dict.fromkeys(shared, 1), runtime.ranks())[runtime.rank()]
        asked = {}
        for name, channels in mine.items():
            for channel in channels:
                asked[name, channel] = ask(name, channel)
                tick(name)
        answers = {place: value for each in ranks.all_gather(asked) for place, value in each.items()}
        for name, channel in part:
            found[name].append(answers[name, channel])
        keep()


def in_graph(graph: Graph, *, swap: bool, dtype: torch.dtype = torch.float32) -> Ablation:
    """Return the fast form: one pass of the graph, and for each filter only what its edit changes.

    An edit silences a channel before the normalisation that follows its convolution, or with `swap` puts in what the
    clean version of the same images gives there.
    """
    tails = cache(lambda name: Downstream(graph, graph.convs[name]))
    graph.module.to(dtype)

    def prepare(sample: Sample) -> Edited:
        base = graph.run(sample.degraded.to(dtype))
        source = _convolved(graph, _clean(sample).to(dtype)) if swap else {}

        def edited(name: str | None, channel: int) -> Tensor:
            if name is None:
                return base[graph.output]
            node = graph.convs[name]
            silent = graph.silent[name][channel].to(dtype).expand_as(base[node][:, :1])
            values = source[node][:, channel : channel + 1] if swap else silent
            return tails(name).run(ChannelDelta(channel, values), base)

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
    """Return the plain form, for networks that cannot be traced: a whole pass for each filter."""
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

    def prepare(sample: Sample) -> Edited:
        clean_maps.cache_clear()

        def edited(name: str | None, channel: int) -> Tensor:
            if name is None:
                return logits(sample.degraded)
            source = clean_maps(name, _clean(sample))[:, channel] if swap else 0

            def edit(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
                output[:, channel] = source
                return output

            with hooked(layers[name], edit):
                return logits(sample.degraded)

        return edited

    return prepare


def _clean(sample: Sample) -> Tensor:
    if sample.clean is None:
        raise ValueError("featswap needs the clean version of every sample")
    return sample.clean
