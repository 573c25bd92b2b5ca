"""Class-stratified splits and subsets, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from deeppatch.data import biased_split
from deeppatch.data.class_selection import selected
from deeppatch.data.given_split import GivenSplit
from deeppatch.data.images import Images, Source
from deeppatch.errors import DataProblem
from deeppatch.progress import info
from deeppatch.runtime import generator


@dataclass(frozen=True)
class Splits:
    """The parts of a data set: train and val from its training part, and test, which is used only for evaluation."""

    train: Images
    val: Images
    test: Images


def split(
    source: Source,
    seed: int,
    limit: int | None = None,
    val_share: float | None = None,
    bias: str | None = None,
    given: GivenSplit | None = None,
) -> Splits:
    """Split a source by class-stratified sampling; `limit` keeps a stratified subset of N images of every part.

    val is held out of the training part by `hold_out`. With a `bias` the parts are those of HybridRepair's protocol,
    with train and val as `given`, where a file says which images they have.
    """
    if bias is not None:
        indices, images = biased_split.partition(source, bias, seed, limit, given), biased_split.combined(source)
        return Splits(*(images.take(part) for part in (indices.train, indices.val, indices.test)))
    parts = (*_train_and_val(source, seed, val_share), source.test)
    if limit is not None:
        parts = tuple(subset(part, limit, seed, source.name, source.classes) for part in parts)  # type: ignore[assignment]
    return Splits(*parts)


def _train_and_val(source: Source, seed: int, val_share: float | None) -> tuple[Images, Images]:
    """Return train and val; those of a selection are the selected images of its whole data sets' train and val.

    So an image is in train for every selection of a data set, or in val for every one.
    """
    if not source.parts:
        return hold_out(source.train, val_share, seed, source.name, source.classes)
    split_parts = [_train_and_val(whole, seed, val_share) for whole, _classes in source.parts]
    own = [classes for _whole, classes in source.parts]
    return selected([each[0] for each in split_parts], own), selected([each[1] for each in split_parts], own)


def hold_out(
    images: Images, val_share: float | None, seed: int, name: str, classes: Sequence[str] = ()
) -> tuple[Images, Images]:
    """Return a training part and, class-stratified, the share `val_share` of its images, which becomes val.

    Where no share is given it is 1/50 (CIFAR: 1,000 images, as published), or where that would be fewer than 1,000
    images, 1,000 or a fifth, whichever is less, because thresholds are calibrated on val. Classes of which val gets no
    image are logged, by their names `classes`.
    """
    total = len(images)
    size = max(total // 50, min(1000, total // 5)) if val_share is None else round(val_share * total)
    kept, held_out = _divide(images, size, seed, name, classes)
    counts = torch.bincount(images.labels.cpu())
    absent = (counts > 0) & (torch.bincount(images.labels.cpu()[held_out], minlength=len(counts)) == 0)
    if bool(absent.any()):
        info(f"{name}: val has no image of the smallest classes: {_counted(counts, absent, classes)} of {total} images")
    return images.take(kept), images.take(held_out)


def halves(images: Images, seed: int, name: str) -> tuple[Images, Images]:
    """Return two class-stratified halves of images; DataProblem when they cannot hold every class."""
    one, two = _divide(images, len(images) // 2, seed, name)
    return images.take(one), images.take(two)


def subset(images: Images, count: int, seed: int, name: str, classes: Sequence[str] = ()) -> Images:
    """Return a class-stratified subset of `count` images, or all where there are no more."""
    if count >= len(images):
        return images
    if len(images) - count < len(images.labels.unique()):  # too few are left out to hold every class themselves
        drawn = torch.randperm(len(images), generator=generator(seed, "subset"))
        return images.take(drawn[:count].sort().values)
    return images.take(_divide(images, count, seed, name, classes)[1])


def _divide(
    images: Images, size: int, seed: int, name: str, classes: Sequence[str] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = images.labels.cpu().numpy()
    try:
        rest, chosen = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    except ValueError as error:
        counts = torch.bincount(images.labels.cpu())
        single = counts == 1
        if bool(single.any()):
            raise DataProblem(
                f"{name}: {_counted(counts, single, classes)} of {len(labels)} images; a class-stratified split needs "
                "at least 2 of every class: add images or remove it"
            ) from error
        raise DataProblem(
            f"{name}: {size} of {len(labels)} images cannot hold every class; use more images or a larger limit"
        ) from error
    return torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(chosen))


def _counted(counts: torch.Tensor, chosen: torch.Tensor, classes: Sequence[str]) -> str:
    """Name some classes with their numbers of images."""
    labels = chosen.nonzero().flatten().tolist()
    named = [f"{classes[label] if label < len(classes) else label} ({int(counts[label])})" for label in labels]
    return f"{'class' if len(named) == 1 else 'classes'} {', '.join(named)}"
