"""Measure methods of test-time adaptation, and fixed networks beside them, on streams of degraded test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeppatch.adapt import names
from deeppatch.adapt.adapter import Adapter
from deeppatch.adapt.methods import METHODS, adapter
from deeppatch.adapt.results import Answers, StreamResults
from deeppatch.adapt.source import FixedNetwork
from deeppatch.data import corruptions
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.streams import DegradedStream, choose_images, stream
from deeppatch.data.views import View, clean
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.progress import counting, info
from deeppatch.zoo.classifier import device_of


def run_streams(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    methods: Sequence[str] = names.METHODS,
    streams: Sequence[str] = names.STREAMS,
    networks: Mapping[str, nn.Module] | None = None,
    settings: Mapping[str, Any] | None = None,
    levels: Sequence[int] | None = None,
    reference: str | None = None,
    per_corruption: int = 200,
    single: int = 20,
    batch_size: int = 200,
    seed: int = 2021,
) -> StreamResults:
    """Measure methods that adapt a classifier, and fixed networks, on streams of degraded test images.

    All rows read the same images in the same order. Answers are those of the pass before the adaptation to a batch.
    Clean accuracy afterwards is measured without adapting, in batches as in the stream; where the stream starts anew at
    each level, before each new start, and averaged.

    Args:
        model: The classifier of pixels (N, 3, H, W) in [0, 1] that the methods adapt; it is not changed.
        data: The data; of `test` the images of the streams are chosen, class-stratified, and `eata` reads `train`.
        corruption: What `deeppatch.corruption` takes or returns; for the usual protocol
            `deeppatch.corruption("all", severity="5")`.
        methods: The methods, of `deeppatch.adapt.names.METHODS`.
        streams: The streams, of `deeppatch.adapt.names.STREAMS`.
        networks: Fixed classifiers by name, on the model's device, such as a fine-tuned or a switched network.
        settings: Settings by method, objects of the methods' own classes (default: the published ones).
        levels: The levels in order; 0 is clean (default: all levels from 1 on).
        reference: The row that the others are compared with (default: the first network, else the first method).
        per_corruption: The number of images at each level.
        single: The number of images at each level of the stream `single`.
        batch_size: The number of images in a batch, and the divisor of ROID's losses.
        seed: The seed of images, orders and augmentations.

    Returns:
        Which images each row classified correctly, and tables: `by_type()` and `by_stream()`.

    Raises:
        UserError: When a method or stream is unknown, or the network lacks what a method needs.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = Images(torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8), torch.arange(24) % 4)
    >>> data = Data(train=images, val=images, test=images, classes=("a", "b", "c", "d"))
    >>> found = run_streams(model, data, "gaussian-blur", methods=["source", "bn-1"], streams=["mixed"])
    >>> found.by_stream()[["method", "n", "forward", "neighbours"]].to_numpy().tolist()
    [['source', 144, 1.0, False], ['bn-1', 144, 1.0, True]]
    """
    check_positive(per_corruption=per_corruption, single=single, batch_size=batch_size)
    data, degrade = data.to(device_of(model)), corruptions.corruption(corruption, seed=seed)
    check_classifier(model, data.example, len(data.classes))
    image = choose_images(data.test, per_corruption, seed)
    images = data.test.take(image.to(data.test.labels.device))
    found = {
        name: stream(name, images, degrade, levels=levels, single=single, batch_size=batch_size, seed=seed)
        for name in streams
    }
    chosen = _settings(methods, settings or {}, batch_size)
    if "ordered" in found and batch_size >= len(image):
        info(
            f"the ordered stream: a batch holds all {len(image)} images of a degradation, so that classes are not "
            "correlated within it; give more images or a smaller batch"
        )
    adapters = _adapters(model, networks or {}, methods, chosen, data, seed)
    first = next(iter(adapters), None) if reference is None else reference
    if first is None or first not in adapters:
        raise UserError(f"reference={first!r}: there are the rows {', '.join(adapters) or '(none)'}")
    answers = [row for each in found.values() for row in _measured(adapters, each, images)]
    level_names = ("clean", *degrade.level_names)
    chosen_levels = range(1, len(level_names)) if levels is None else levels
    return StreamResults(
        answers={(row.method, row.stream): row for row in answers},
        reference=first,
        levels=tuple(level_names[level] for level in chosen_levels),
        image=image.numpy(),
        single_image=image[choose_images(images, single, seed)].numpy(),
    )


def _settings(methods: Sequence[str], settings: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Return the settings of each method; ROID's losses are divided by the size of a batch."""
    if unknown := sorted(settings.keys() - set(methods)):
        raise UserError(f"settings of {', '.join(unknown)}: there is no such method among {', '.join(methods)}")
    found = dict(settings)
    if "roid" in methods and "roid" not in found:
        found["roid"] = replace(METHODS["roid"].settings(), batch_size=batch_size)
    return found


def _adapters(
    model: nn.Module,
    networks: Mapping[str, nn.Module],
    methods: Sequence[str],
    settings: Mapping[str, Any],
    data: Data,
    seed: int,
) -> dict[str, Adapter]:
    """Return an adapter for each row, fixed networks first; UserError where two rows have one name."""
    if twice := sorted(networks.keys() & set(methods)):
        raise UserError(f"{', '.join(twice)}: networks have other names than methods; rename one")
    found: dict[str, Adapter] = {name: FixedNetwork(network) for name, network in networks.items()}
    pixels = None
    if "eata" in methods:
        count = settings.get("eata", METHODS["eata"].settings()).fisher_images
        chosen = choose_images(data.train, count, seed).to(data.train.labels.device)
        pixels = data.train.take(chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))])
    for name in methods:
        source = None if pixels is None or name != "eata" else pixels.pixels[:]
        found[name] = adapter(name, model, settings.get(name), source=source, seed=seed)
    return found


@torch.no_grad()
def _measured(adapters: Mapping[str, Adapter], images: DegradedStream, chosen: Images) -> list[Answers]:
    """Let every adapter answer all images of a stream; degraded images are made once for all."""
    numbers = torch.unique(torch.cat([part.index for part in images.parts]))
    several = any(size > 1 for part in images.parts for size in part.sizes)
    held, shape, active, found = chosen.take(numbers), (len(images.levels), len(numbers)), [], []
    for name, each in adapters.items():
        each.reset()
        passes = each.passes
        defined = images.smallest_batch >= each.smallest_batch
        answers = Answers(name, images.name, np.zeros(shape, dtype=bool) if defined else None)
        answers.forward, answers.train, answers.resets = -passes.forward, -passes.train, -each.resets
        found.append(answers)
        if defined:
            active.append((answers, each))
        else:
            info(f"{name}: not defined on the stream {images.name}, in which a batch has one image")
    with counting(len(images) * len(active), f"stream {images.name}") as tick:
        for part in images.parts:
            for columns, rows, pixels, labels in _batches(part, numbers, images.levels):
                for answers, each in active:
                    assert answers.correct is not None
                    right = each.predict(pixels).argmax(1) == labels
                    answers.correct[rows, columns] = right.cpu().numpy()
                    tick(len(labels))
            if images.resets or part is images.parts[-1]:
                for answers, each in active:
                    answers.clean.append(_clean_accuracy(each, held, part.batch_size))
                    if images.resets:
                        each.reset()
    for answers, each in zip(found, adapters.values(), strict=True):
        answers.forward += each.passes.forward
        answers.train += each.passes.train
        answers.resets += each.resets
        answers.neighbours, answers.past = each.depends_on_neighbours and several, each.depends_on_past
    return found


def _batches(
    part: View, numbers: Tensor, levels: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor, Tensor]]:
    """Yield the batches of a part: the columns and rows of its images in a table of answers, pixels and labels."""
    columns = torch.searchsorted(numbers, part.index).cpu().numpy()
    row_of = {level: row for row, level in enumerate(levels)}
    rows = np.array([row_of[level] for level in part.levels.tolist()])
    start = 0
    for pixels, labels in part:
        own = slice(start, start + len(labels))
        yield columns[own], rows[own], pixels, labels
        start += len(labels)


def _clean_accuracy(adapter: Adapter, images: Images, batch_size: int) -> float:
    """Return the accuracy in [0, 1] on clean images, without adapting; a last batch that is too small is left out."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(len(images)))
    right, total = 0, 0
    for pixels, labels in clean(images.take(order.to(images.labels.device)), batch_size):
        if len(labels) >= adapter.smallest_batch:
            right += int((adapter.answer(pixels).argmax(1) == labels).sum())
            total += len(labels)
    return right / total
