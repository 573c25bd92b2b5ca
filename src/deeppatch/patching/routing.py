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
from deeppatch.patching.switch import Switch
from deeppatch.progress import track


@dataclass(frozen=True)
class Routing:
    """Router scores, float64, and decisions, bool, both (levels + 1, images); row 0 is clean.

    Where levels have images of their own, and not as many, both are a row for each level.

    Args:
        scores: The scores.
        switched: Which samples another network than the original one answered.
        expert: Which network answered, 0 for the original one, int64, of the same shape.
        alarm: Which samples resembled nothing in the calibration, bool, of the same shape.
    """

    scores: metrics.Rows
    switched: metrics.Rows
    expert: metrics.Rows | None = None
    alarm: metrics.Rows | None = None


@torch.inference_mode()
def route_by_level(
    model: Switch,
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
    correct, scores, expert, alarm = (metrics.rows_of(parts) for parts in zip(*rows, strict=True))
    in_stream = _route(model, views.mixed_stream(images, corruption, batch_size, seed), "switched, mixed", amp)[0]
    switched = metrics.rows_of([row > 0 for row in expert])
    return CorrectPredictions(correct, in_stream), Routing(scores, switched, expert, alarm)


def _route(model: Switch, view: views.View, label: str, amp: bool) -> tuple[Tensor, ...]:
    rows = []
    for pixels, labels in track(view, len(view), label):
        with runtime.autocast(pixels.device, amp):
            found = model.answer(pixels)
        rows.append((found.logits.argmax(1) == labels, found.scores, found.expert, found.alarm))
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
