"""Select classes of one or several data sets as a data set of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deeppatch.data.images import Images, Source
from deeppatch.errors import DataProblem, closest


def select_classes(name: str, wholes: Mapping[str, Source], parts: Sequence[tuple[str, Sequence[str]]]) -> Source:
    """Return the data set `name` of some classes of whole data sets.

    Classes that have the same name in two data sets are called DATASET:CLASS.

    Args:
        name: What it is called.
        wholes: The data sets by name.
        parts: Of each data set in the order of the labels, the indices or names of the classes, all where there are
            none.

    Raises:
        DataProblem: When there is no such class, one is selected twice, or the images differ in size or type.
    """
    chosen = [(own, _labels(own, wholes[own], classes)) for own, classes in parts]
    labelled = [(own, label) for own, labels in chosen for label in labels]
    if twice := [each for each in labelled if labelled.count(each) > 1]:
        raise DataProblem(f"{twice[0][0]}:{wholes[twice[0][0]].classes[twice[0][1]]} is selected twice; select it once")
    kinds = {own: (tuple(_pixels(each.train).shape[1:]), _pixels(each.train).dtype) for own, each in wholes.items()}
    if len(set(kinds.values())) > 1:
        sizes = ", ".join(f"{own} {shape[2]}x{shape[1]}" for own, (shape, _dtype) in kinds.items())
        raise DataProblem(
            f"{name}: images of one size can be joined, and these are of several ({sizes}); give --image_size"
        )
    plain = [wholes[own].classes[label] for own, label in labelled]
    names = tuple(
        f"{own}:{each}" if plain.count(each) > 1 else each for (own, _), each in zip(labelled, plain, strict=True)
    )
    own = [labels for _, labels in chosen]
    whole = [wholes[each] for each, _ in chosen]
    return Source(
        name,
        selected([each.train for each in whole], own),
        selected([each.test for each in whole], own),
        names,
        all(each.augment for each in whole),
        all(each.mirror for each in whole),
        tuple(zip(whole, map(tuple, own), strict=True)),
    )


def selected(images: Sequence[Images], classes: Sequence[Sequence[int]]) -> Images:
    """Return the images of some classes of each part, one part after the other; labels count through all classes."""
    parts, first = [], 0
    for each, own in zip(images, classes, strict=True):
        part = each.only(own)
        parts.append(Images(_pixels(part), part.labels + first))
        first += len(own)
    return Images(torch.cat([_pixels(part) for part in parts]), torch.cat([part.labels for part in parts]))


def _labels(name: str, whole: Source, classes: Sequence[str]) -> list[int]:
    """Return the labels of classes that are given by name or index."""
    by_name = {str(label): label for label in range(len(whole.classes))}
    by_name |= {each: label for label, each in enumerate(whole.classes)}
    for each in classes:
        if each not in by_name:
            raise DataProblem(
                f"{name} has no class {each}{closest(each, whole.classes)}; it has "
                f"{', '.join(f'{label} {known}' for label, known in enumerate(whole.classes[:20]))}"
            )
    return [by_name[each] for each in classes] or list(range(len(whole.classes)))


def _pixels(images: Images) -> Tensor:
    pixels = images.pixels
    return pixels if isinstance(pixels, Tensor) else pixels[:]
