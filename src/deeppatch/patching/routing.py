"""Measure predictions and routing of a switched model at each level of a corruption and on a mixed stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deeppatch import metrics, runtime
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.evaluation import CorrectPredictions
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track


@dataclass(frozen=True)
class Routing:
    """Router scores, float64, and decisions, bool, both (levels + 1, images); row 0 is clean.

    Where levels have images of their own, and not as many, both are a row for each level.
    """

    scores: metrics.Rows
    switched: metrics.Rows


@torch.inference_mode()
def route_by_level(
    model: SwitchedModel,
    images: Images,
    corruption: Corruption,
    *,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> tuple[CorrectPredictions, Routing]:
    """Return which images a switched model classifies correctly, and how it routes them at each level.

    A majority vote depends on the batch, so no batch has images of two levels, except on the mixed stream.
    """
    rows = [
        _route(model, views.levels_view(images, corruption, [level], batch_size), f"switched, level {level}", amp)
        for level in range(len(corruption) + 1)
    ]
    correct, scores, switched = (metrics.rows_of(parts) for parts in zip(*rows, strict=True))
    in_stream = _route(model, views.mixed_stream(images, corruption, batch_size, seed), "switched, mixed", amp)[0]
    return CorrectPredictions(correct, in_stream), Routing(scores, switched)


def _route(model: SwitchedModel, view: views.View, label: str, amp: bool) -> tuple[Tensor, ...]:
    rows = []
    for pixels, labels in track(view, len(view), label):
        with runtime.autocast(pixels.device, amp):
            logits, scores, switched = model.route(pixels)
        rows.append((logits.argmax(1) == labels, scores, switched))
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
