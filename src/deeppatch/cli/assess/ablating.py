"""Ablating on val: the degraded images as rankings read them, the engine that fits the network, and exact scores."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.cli.context import Context
from deeppatch.cli.methods import Scoring
from deeppatch.data import views
from deeppatch.data.views import View
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.network_graph import Graph
from deeppatch.graph.tracing import Untraceable
from deeppatch.localization.ablation import (
    Ablation,
    Counts,
    Filters,
    Sample,
    Scores,
    by_hooks,
    bytes_an_image,
    count,
    in_graph,
)
from deeppatch.progress import counting, info
from deeppatch.zoo.classifier import Classifier


class Engine(NamedTuple):
    """How filters are ablated, what an ablation in each layer costs, and the bytes that an image's maps take."""

    ablation: Ablation
    costs: dict[str, int]
    bytes_an_image: int


def exact(context: Context, model: Classifier, method: Scoring, filters: Filters | None = None) -> Scores:
    """Ablate filters (default: all) on val, one by one; an interruption loses seconds."""
    options = context.options
    filters = filters or {name: range(conv.out_channels) for name, conv in convolutions(model.network).items()}
    machine = engine(context, model, method)
    size = batch_size(context, machine.bytes_an_image)
    view = degraded_view(context, size, swap=method.swap)
    checkpoint = context.checkpoint(base=state_digest(model.state_dict()))
    counts = Counts(**(ranks.broadcast_from_rank0(checkpoint.load) or {}))
    number = sum(map(len, filters.values()))
    info(
        f"ablating {number} filters in {len(filters)} layers, {len(view.labels)} degraded val images each, "
        f"{size} at a time"
    )
    mean = sum(len(channels) * machine.costs[name] for name, channels in filters.items()) / number
    # progress counts average filters, and one rank speaks for all
    weights = {name: cost / mean for name, cost in machine.costs.items()}
    done = counts.samples * number + sum(len(row) * weights[name] for name, row in counts.right_now.items())
    keep = every_second(lambda: checkpoint.save(dataclasses.asdict(counts)))
    with counting(len(view) * number, options.fs_method, done) as tick:
        stream = samples(model, view, swap=method.swap)
        count(
            stream,
            filters,
            machine.ablation,
            counts,
            keep,
            lambda name: tick(runtime.ranks() * weights[name]),
            machine.costs,
        )
    return counts.scores(method.sign)


def engine(context: Context, model: Classifier, method: Scoring) -> Engine:
    """Return the fast engine, or the plain one where the network cannot be run as a graph."""
    network, amp = model.network, context.options.amp
    example = model.normalize(context.example)
    try:
        graph = Graph(network, example)
    except Untraceable as error:
        info(f"{context.options.model} cannot be run as a graph: {error}; every filter takes a whole pass")
        plain = by_hooks(network, swap=method.swap, amp=amp)
        return Engine(plain, dict.fromkeys(convolutions(network), 1), bytes_an_image(network, example))
    size = graph.bytes_an_image(example) * (2 if method.swap else 1)  # the clean version's maps too
    if amp and not runtime.has_bfloat16(context.device):
        info("--amp: this processor has no bfloat16 arithmetic and is faster in float32, which it ranks in")
        amp = False
    dtype = torch.bfloat16 if amp else torch.float32
    return Engine(in_graph(graph, swap=method.swap, dtype=dtype), graph.costs(), size)


def batch_size(context: Context, bytes_an_image: int) -> int:
    """Return how many images are ranked on at a time: --batch_size, or fewer where --mem does not hold their maps."""
    return max(1, min(context.options.batch_size, context.options.mem * 2**20 // bytes_an_image))


def degraded_view(context: Context, size: int, *, swap: bool) -> View:
    """Return val as the ranking reads it: every level of every image, or with swaps one fixed draw."""
    val = context.splits.val
    if swap:
        return views.degraded_draw(val, context.blur, size, context.options.seed)
    return views.expand(val, context.blur, size)


@torch.no_grad()
def samples(model: Classifier, view: View, *, swap: bool) -> Iterator[Sample]:
    """Yield a view batch by batch, normalised; each batch is degraded once."""
    clean = dataclasses.replace(view, levels=torch.zeros_like(view.levels))
    for (pixels, labels), (originals, _) in zip(view, clean, strict=True):
        yield Sample(model.normalize(pixels), labels, model.normalize(originals) if swap else None)


def every_second(save: Callable[[], object]) -> Callable[[object], None]:
    """Return a function that saves when it has not done so for a second."""
    last = -math.inf

    def keep(_counts: object) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            save()
            last = time.monotonic()

    return keep
