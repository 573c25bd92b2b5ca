"""compose, one class at a time: what weak model and module answer, and what each join of them is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.modular import joins
from deeppatch.modular.joins import Frozen, calibrate, joined, span, worth
from deeppatch.progress import track

BEFORE = "weak model alone"


@torch.no_grad()
def outputs(context: Context, model: nn.Module, images: Images, label: str) -> Tensor:
    """Return what a model answers to images as they are, float32, in their order."""
    view = views.clean(images, context.options.batch_size)
    rows = []
    for pixels, _labels in track(view, len(view), label):
        with runtime.autocast(context.device, context.options.amp):
            rows.append(model(pixels).float())
    return torch.cat(rows)


def own_scores(context: Context, member: nn.Module, target: int) -> Tensor:
    """Return the module's scores of its own class's images in the strong model's val: what ranges are made of."""
    val = context.splits.val
    own = val.take((val.labels == target).nonzero().flatten())
    return outputs(context, member, own, "scores of val")


def frozen(context: Context, weak: nn.Module, member: nn.Module, images: Images, part: str) -> Frozen:
    """Return what the weak model and the module answer to images of the weak model's data."""
    logits, scores = (outputs(context, model, images, f"answers to {part}") for model in (weak, member))
    return Frozen(logits, scores, images.labels)


def compare(
    context: Context, weak: Context, weak_model: nn.Module, member: nn.Module, target: int, asked: Sequence[str]
) -> dict[str, Any]:
    """Return the ranges of a module, and what the weak model is worth on its test images alone and by each join."""
    own = own_scores(context, member, target)
    ranges = {join: span(join, own) for join in dict.fromkeys([*joins.RANGES, *asked]) if is_range(join)}
    test = frozen(weak, weak_model, member, weak.splits.test, "test")
    answers = {BEFORE: test.logits}
    for join in asked:
        if is_range(join):
            answers[join] = joined(test.logits, ranges[join](test.scores))
        elif join == "direct":
            answers[join] = joined(test.logits, test.scores)
        else:
            train, val = (
                frozen(weak, weak_model, member, images, part)
                for images, part in ((weak.splits.train, "train"), (weak.splits.val, "val"))
            )
            answers[join] = calibrate(train, val, context.options.seed)(test.inputs).detach()
    last = test.logits.shape[1] - 1
    return {
        "ranges": {join: asdict(each) for join, each in ranges.items()},
        "range_images": len(own),
        "test_images": len(test.labels),
        "worth": {join: worth(answer.argmax(1), test.labels, last) for join, answer in answers.items()},
    }


def is_range(join: str) -> bool:
    """Tell whether a join takes a range of the module's scores."""
    return joins.parse(join)[0] in joins.RANGES
