"""What every network answers on test: by blur level, and on a mixed stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.cli.context import Context
from deeppatch.cli.measure import right_by_level
from deeppatch.data import views
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track
from deeppatch.training import predict


@dataclass(frozen=True)
class Answers:
    """Which test images a network gets right: bool (levels + 1, images), and bool (images,) on the mixed stream."""

    by_level: Tensor
    in_stream: Tensor


@dataclass(frozen=True)
class Routing:
    """Router scores and decisions on test, both (levels + 1, images); row 0 is clean."""

    scores: Tensor
    switched: Tensor


def mixed_stream(context: Context) -> views.View:
    """Return the test images shuffled, every second one degraded at a drawn level."""
    options = context.options
    return views.mixed_stream(context.splits.test, context.blur, options.batch_size, options.seed)


def answer(context: Context, model: nn.Module, name: str) -> Answers:
    """Return which test images a network gets right."""
    mixed = mixed_stream(context)
    by_level = right_by_level(context, model, context.splits.test, f"{name}, levels")
    in_stream = predict(model, mixed, amp=context.options.amp, label=f"{name}, mixed") == mixed.labels
    return Answers(by_level, in_stream)


@torch.inference_mode()
def answer_switched(context: Context, switched: SwitchedModel) -> tuple[Answers, Routing]:
    """Return which test images the switched model gets right, and how it routed each level."""
    options, test = context.options, context.splits.test
    rows = []
    for level in range(len(context.sigmas) + 1):
        view = views.levels_view(test, context.blur, [level], options.batch_size)
        rows.append(_route_all(context, switched, view, f"switched, level {level}"))
    right, scores, moved = (torch.stack(parts) for parts in zip(*rows, strict=True))
    in_stream, _, _ = _route_all(context, switched, mixed_stream(context), "switched, mixed")
    return Answers(right, in_stream), Routing(scores, moved)


def _route_all(context: Context, switched: SwitchedModel, view: views.View, label: str) -> tuple[Tensor, ...]:
    rows = []
    for pixels, labels in track(view, len(view), label):
        with runtime.autocast(context.device, context.options.amp):
            logits, scores, moved = switched.route(pixels)
        rows.append((logits.argmax(1) == labels, scores, moved))
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def oracle(context: Context, original: Answers, patched: Answers) -> Answers:
    """Return what a router that knows which samples are degraded would get right: the ceiling."""
    by_level = torch.cat([original.by_level[:1], patched.by_level[1:]])
    degraded = mixed_stream(context).levels > 0
    return Answers(by_level, torch.where(degraded, patched.in_stream, original.in_stream))
