"""The one way to measure classifiers: correct predictions at each level of a corruption and on a mixed stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from deeppatch.errors import UserError
from deeppatch.training import predict
from deeppatch.zoo.classifier import device_of


@dataclass(frozen=True)
class Answers:
    """Which images a classifier gets correct: bool (levels + 1, images), row 0 clean, and bool (images,) on the stream.

    The stream has every image once, shuffled, every second one degraded (`views.mixed_stream`).
    """

    by_level: Tensor
    in_stream: Tensor


def correct_by_level(
    model: nn.Module,
    images: Images,
    corruption: Corruption | None,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "evaluating",
) -> Tensor:
    """Return which images a classifier gets correct, bool (levels + 1, images); row 0 is clean.

    Images lie on the model's device. Without a corruption the only row is clean.
    """
    rows = []
    with in_eval_mode(model):
        for level in range(1 + (0 if corruption is None else len(corruption))):
            view = views.levels_view(images, corruption, [level], batch_size)
            found = predict(model, view, amp=amp, label=f"{label}, level {level}")
            rows.append(found == view.labels)
    return torch.stack(rows)


def answers(
    model: nn.Module,
    images: Images,
    corruption: Corruption,
    *,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    label: str = "evaluating",
) -> Answers:
    """Return which images a classifier gets correct at each level and on the mixed stream."""
    by_level = correct_by_level(model, images, corruption, batch_size=batch_size, amp=amp, label=label)
    mixed = views.mixed_stream(images, corruption, batch_size, seed)
    with in_eval_mode(model):
        return Answers(by_level, predict(model, mixed, amp=amp, label=f"{label}, mixed") == mixed.labels)


def oracle(original: Answers, patched: Answers, stream: views.View) -> Answers:
    """Return what a router that knows which samples are degraded would get correct: the ceiling of every router.

    `stream` is the mixed stream that both were measured on.
    """
    by_level = torch.cat([original.by_level[:1], patched.by_level[1:]])
    return Answers(by_level, torch.where(stream.levels > 0, patched.in_stream, original.in_stream))


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
        models: a classifier of pixels (N, 3, H, W) in [0, 1], or several by name.
        images: labelled images, or data, whose test part is read. They are moved to each model's device.
        corruption: what `deeppatch.corruption` takes or returns; without one, only clean images are measured.
        batch_size: images a batch.
        amp: run networks in bfloat16.
        seed: what the mixed stream depends on.
        compare: the name of the model that the others are compared with (default: the first).

    Returns:
        One row a model. In percent: accuracy on `clean` images, at each level, its `mean` over the levels, and on a
        `mixed` stream in which every second image is degraded. With several models, `repair` and `break` are the shares
        of the mixed stream (without a corruption: of the clean images) that the model compared with gets wrong and this
        one correct, and the other way round: accuracy is that of the model compared with, plus repair, minus break.

    Raises:
        UserError: where there are no models, or none is called as `compare` says.

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
    named = {"model": models} if isinstance(models, nn.Module) else dict(models)
    reference = next(iter(named), None) if compare is None else compare
    if reference not in named:
        raise UserError(f"compare={compare!r}: there are the models {', '.join(named) or '(none)'}")
    test = images.test if isinstance(images, Data) else images
    chosen = None if corruption is None else corruptions.corruption(corruption, seed=seed)
    rows, streams = {}, {}
    for name, model in named.items():
        own = test.to(device_of(model))
        if chosen is None:
            streams[name] = correct_by_level(model, own, None, batch_size=batch_size, amp=amp, label=name)[0].cpu()
            rows[name] = {"clean": _percent(streams[name])}
            continue
        found = answers(model, own, chosen, seed=seed, batch_size=batch_size, amp=amp, label=name)
        streams[name] = found.in_stream.cpu()
        measured = metrics.accuracies(found.by_level, chosen.level_names)
        del measured["append"]
        rows[name] = {**measured, "mixed": _percent(streams[name])}
    if len(named) > 1:
        before = streams[reference]
        for name, row in rows.items():
            row |= {"repair": _percent(streams[name] & ~before), "break": _percent(before & ~streams[name])}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module of it back in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _percent(correct: Tensor) -> float:
    return 100 * correct.double().mean().item()
