"""Measure classifiers: correct predictions at each level of a corruption and on a mixed stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import metrics
from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError, check_positive
from deeppatch.graph.hooks import eval_mode
from deeppatch.training import predict
from deeppatch.zoo.classifier import device_of


@dataclass(frozen=True)
class CorrectPredictions:
    """Which images a classifier classifies correctly.

    Args:
        by_level: bool (levels + 1, images), row 0 for clean images; a row for each where they differ in length.
        in_stream: bool (images,), on a shuffled stream in which each image is degraded with probability 1/2
            (`views.mixed_stream`).
    """

    by_level: metrics.Rows
    in_stream: Tensor

    def accuracies(self, level_names: Sequence[str], mean: str = "mean") -> dict[str, float]:
        """Return accuracies in percent: those of `metrics.accuracies`, and `mixed` for the stream."""
        return {**metrics.accuracies(self.by_level, level_names, mean), "mixed": _percent(self.in_stream)}

    def repair_and_break_rates(
        self, before: CorrectPredictions, level_names: Sequence[str], mean: str = "mean"
    ) -> dict[str, dict[str, float]]:
        """Return the rates of `metrics.repair_and_break_rates` against `before`, with `mixed` for the stream."""
        rates = metrics.repair_and_break_rates(self.by_level, before.by_level, level_names, mean)
        rates["repair"]["mixed"] = _percent(self.in_stream & ~before.in_stream)
        rates["break"]["mixed"] = _percent(before.in_stream & ~self.in_stream)
        return rates


def correct_by_level(
    model: nn.Module,
    images: Images,
    corruption: Corruption | None,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "evaluating",
) -> metrics.Rows:
    """Return which images a classifier classifies correctly, bool (levels + 1, images); row 0 is clean.

    Of a level that has images of its own, these are measured: its row may have another length. Images must be on the
    model's device. Without a corruption there is only the row of clean images.
    """
    rows = []
    with eval_mode(model):
        for level in range(1 + (0 if corruption is None else len(corruption))):
            view = views.levels_view(images, corruption, [level], batch_size)
            found = predict(model, view, amp=amp, label=f"{label}, level {level}")
            rows.append(found == view.labels)
    return metrics.rows_of(rows)


def correct_predictions(
    model: nn.Module,
    images: Images,
    corruption: Corruption,
    *,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    label: str = "evaluating",
) -> CorrectPredictions:
    """Return which images a classifier classifies correctly at each level and on the mixed stream."""
    by_level = correct_by_level(model, images, corruption, batch_size=batch_size, amp=amp, label=label)
    mixed = views.mixed_stream(images, corruption, batch_size, seed)
    with eval_mode(model):
        return CorrectPredictions(by_level, predict(model, mixed, amp=amp, label=f"{label}, mixed") == mixed.labels)


def check_classifier(model: nn.Module, example: Tensor, classes: int = 1) -> None:
    """Raise UserError unless a model maps pixels (N, 3, H, W) in [0, 1] to finite logits (N, at least `classes`)."""
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(example)
        except Exception as error:  # a network's own code may raise anything, an assertion about the size above all
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            raise UserError(f"the model fails on float pixels {tuple(example.shape)}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"a classifier returns logits (N, classes); for pixels {tuple(example.shape)} the model returned {found}"
        )
    if logits.shape[1] < classes:
        raise UserError(f"the model has {logits.shape[1]} outputs, the data have {classes} classes")
    if not logits.isfinite().all():
        raise UserError("the model returns logits that are not finite; check its weights")


def check_corruption(corruption: Corruption, example: Tensor) -> None:
    """Degrade pixels (N, 3, H, W) in [0, 1] at every level, so that what cannot be done is told before a training."""
    for level in range(1, len(corruption) + 1):
        corruption(example, level)


def oracle_router(original: CorrectPredictions, patched: CorrectPredictions, stream: views.View) -> CorrectPredictions:
    """Return the correct predictions with a perfect router, which is an upper limit for every router.

    It routes exactly the degraded samples to the patched network. `stream` is the mixed stream of both arguments.
    """
    by_level = metrics.rows_of([original.by_level[0], *patched.by_level[1:]])
    return CorrectPredictions(by_level, torch.where(stream.levels > 0, patched.in_stream, original.in_stream))


def evaluate(
    models: nn.Module | Mapping[str, nn.Module],
    images: Images | Data,
    corruption: Any = None,
    *,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    compare: str | None = None,
) -> pd.DataFrame:
    """Measure classifiers on clean and on degraded images.

    Args:
        models: A classifier of pixels (N, 3, H, W) in [0, 1], or several by name.
        images: Labelled images, or data, of which the test part is read. They are moved to each model's device.
        corruption: What `deeppatch.corruption` takes or returns; without one, only clean images are measured.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.
        seed: The seed of the mixed stream.
        compare: The name of the model that the others are compared with, the reference (default: the first).

    Returns:
        One row per model. In percent: accuracy on `clean` images, at each level, its `mean` over the levels, and on a
        `mixed` stream in which each image is degraded with probability 1/2. With several models, `repair` is the share
        of the mixed stream (without a corruption: of the clean images) that this model classifies correctly and the
        reference does not, and `break` the reverse: accuracy is that of the reference, plus repair, minus break.

    Raises:
        UserError: When there are no models, or none has the name `compare`.

    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    >>> images = Images(torch.rand(20, 3, 8, 8), torch.arange(20) % 4)
    >>> table = evaluate({"mine": network, "again": network}, images, "gaussian-blur")
    >>> list(table.columns)[:3], list(table.columns)[-4:]
    (['clean', 's=0.5', 's=1'], ['mean', 'mixed', 'repair', 'break'])
    >>> table.loc["again", "repair"].item()
    0.0
    """
    check_positive(batch_size=batch_size)
    named = {"model": models} if isinstance(models, nn.Module) else dict(models)
    reference = next(iter(named), None) if compare is None else compare
    if reference not in named:
        raise UserError(f"compare={compare!r}: there are the models {', '.join(named) or '(none)'}")
    test = images.test if isinstance(images, Data) else images
    chosen = None if corruption is None else corruptions.corruption(corruption, seed=seed)
    rows, streams = {}, {}
    for name, model in named.items():
        own = test.to(device_of(model))
        check_classifier(model, views.to_float(own.pixels[:2]), len(images.classes) if isinstance(images, Data) else 1)
        if chosen is None:
            streams[name] = correct_by_level(model, own, None, batch_size=batch_size, amp=amp, label=name)[0].cpu()
            rows[name] = {"clean": _percent(streams[name])}
            continue
        correct = correct_predictions(model, own, chosen, seed=seed, batch_size=batch_size, amp=amp, label=name)
        streams[name] = correct.in_stream.cpu()
        rows[name] = correct.accuracies(chosen.level_names)
        del rows[name]["append"]
    if len(named) > 1:
        before = streams[reference]
        for name, row in rows.items():
            row |= {"repair": _percent(streams[name] & ~before), "break": _percent(before & ~streams[name])}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _percent(correct: Tensor) -> float:
    return 100 * correct.double().mean().item()
