"""What assess needs to ablate filters: val as rankings read it, and the engine that fits the network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import torch

from deeppatch.blame.ablation import Ablation, Sample, by_hooks, in_graph
from deeppatch.blame.graph import Graph, Untraceable
from deeppatch.commands.context import Context
from deeppatch.commands.methods import Scoring
from deeppatch.data import views
from deeppatch.data.views import View
from deeppatch.progress import info
from deeppatch.surgery import convolutions
from deeppatch.zoo.classifier import Classifier


def engine(context: Context, model: Classifier, method: Scoring) -> tuple[Ablation, dict[str, int], int]:
    """Return how filters are ablated, what one of each layer costs, and the bytes that an image's maps take."""
    network, amp = model.network, context.options.amp
    example = model.normalize(context.example)
    try:
        graph = Graph(network, example)
    except Untraceable as error:
        info(f"{context.options.model} cannot be run as a graph: {error}; every filter takes a whole pass")
        return by_hooks(network, swap=method.swap, amp=amp), dict.fromkeys(convolutions(network), 1), 1
    dtype = torch.bfloat16 if amp else torch.float32
    return in_graph(graph, swap=method.swap, dtype=dtype), graph.costs(), graph.bytes_an_image(example)


def degraded_view(context: Context, method: Scoring, size: int) -> View:
    """Return val as the ranking reads it: every level of every image, or with swaps one fixed draw."""
    val = context.splits.val
    if method.swap:
        return views.degraded_draw(val, context.blur, size, context.options.seed)
    return views.expand(val, context.blur, size)


@torch.inference_mode()
def samples(model: Classifier, method: Scoring, view: View) -> Iterator[Sample]:
    """Yield a view batch by batch, normalised; each batch is degraded once."""
    clean = dataclasses.replace(view, levels=torch.zeros_like(view.levels))
    for (pixels, labels), (originals, _) in zip(view, clean, strict=True):
        yield Sample(model.normalize(pixels), labels, model.normalize(originals) if method.swap else None)


def every_second(save: Callable[[], object]) -> Callable[[object], None]:
    """Return a function that saves when it has not done so for a second."""
    last = time.monotonic()

    def keep(_counts: object) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            save()
            last = time.monotonic()

    return keep
