"""Labelled images from a file of numpy arrays (.npz); nothing in it is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from deeppatch.data.folders import ordered
from deeppatch.data.images import Images, Source
from deeppatch.data.reading import class_names, same_size, to_images
from deeppatch.errors import DataProblem
from deeppatch.progress import info

# names of images and labels in the training and the test part, as different publishers have them
PARTS = (
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
)
WHOLE = ("images", "labels")
TEST_SHARE = 0.2
LAYOUT = (
    "give arrays images (N, H, W), (N, H, W, 3) or (N, 3, H, W) and labels (N,), or train_images, train_labels, "
    "test_images and test_labels"
)


def load_npz(path: Path, name: str, seed: int) -> Source:
    """Load labelled images from arrays, as they are.

    Args:
        path: A file of numpy.savez with `images` and `labels`, of which a class-stratified fifth is the test part, by
            seed, or with the names of PARTS. `classes` may name the classes. Labels are numbers from 0, or names.
        name: The name of the data set.
        seed: The seed of the split.

    Raises:
        DataProblem: When the file cannot be read or lacks an array, or images and labels do not fit each other.
    """
    arrays = _read(path)
    names = next((each for each in PARTS if {*each[0], *each[1]} <= arrays.keys()), None)
    if names is None and not set(WHOLE) <= arrays.keys():
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataProblem(f"{path} holds {found}; {LAYOUT}")
    used = {*WHOLE, "classes"} if names is None else {*names[0], *names[1], "classes"}
    if beside := sorted(arrays.keys() - used):
        info(f"{path}: {', '.join(beside)} are not read")
    pairs = [(arrays[images], arrays[labels]) for images, labels in (names or [WHOLE])]
    values, classes = _numbered([labels for _images, labels in pairs], arrays.get("classes"))
    parts = [
        to_images((images, labels), f"{path}, {part}")
        for (images, _labels), labels, part in zip(pairs, values, ("train", "test"), strict=False)
    ]
    return source_of(parts, name, classes, seed)


def source_of(parts: list[Images], name: str, classes: list[str] | None, seed: int) -> Source:
    """Return the data set of a training and a test part, or of one part that is split by class and seed."""
    same_size([part.pixels for part in parts], f"{name}: train and test")
    known = tuple(class_names([], classes, parts))
    if len(set(torch.cat([part.labels for part in parts]).tolist())) < 2:
        raise DataProblem(f"{name} has images of a single class; a classifier needs at least two")
    if len(parts) == 2:
        return Source(name, parts[0], parts[1], known)
    labels = parts[0].labels.numpy()
    try:
        train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=seed)
    except ValueError as error:
        counts = torch.bincount(parts[0].labels)
        least = int(torch.where(counts > 0, counts, counts.max() + 1).argmin())
        raise DataProblem(
            f"{name}: class {known[least]} has {int(counts[least])} of {len(labels)} images, too few for a split into "
            "train and test; add images, or give both parts"
        ) from error
    info(f"{name}: {len(test)} of {len(labels)} images are the test part, by class and seed")
    whole = parts[0]
    train_part, test_part = (whole.take(torch.from_numpy(np.sort(each))) for each in (train, test))
    return Source(name, train_part, test_part, known)


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise DataProblem(f"{path} holds one array without a name; {LAYOUT}")
        with found as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise DataProblem(f"{path} holds arrays of Python objects, which are not unpickled; {LAYOUT}") from error
        raise DataProblem(f"{path} is no readable file of numpy.savez ({type(error).__name__}); {LAYOUT}") from error


def _numbered(
    parts: Iterable[np.ndarray[Any, Any]], classes: np.ndarray[Any, Any] | None
) -> tuple[list[np.ndarray[Any, Any]], list[str] | None]:
    """Return labels as numbers (N,), and the names of the classes if there are any."""
    labels = [part.reshape(len(part)) if part.ndim == 2 and part.shape[1] == 1 else part for part in parts]
    names = None if classes is None else [_text(each) for each in classes.reshape(-1).tolist()]
    if names and (twice := sorted({each for each in names if names.count(each) > 1})):
        raise DataProblem(f"classes names {', '.join(twice)} more than once; give every class a name of its own")
    if any(part.dtype.kind in "US" for part in labels):
        texts = [[_text(each) for each in part.tolist()] for part in labels]
        names = names or ordered(list(set(texts[0])))  # of the training images
        if unknown := sorted({each for part in texts for each in part} - set(names)):
            raise DataProblem(f"labels name no class of {', '.join(names)}: {', '.join(unknown)}")
        index = {each: number for number, each in enumerate(names)}
        labels = [np.array([index[each] for each in part]) for part in texts]
    return labels, names


def _text(label: object) -> str:
    if not isinstance(label, bytes):
        return str(label)
    try:
        return label.decode()
    except UnicodeDecodeError as error:
        raise DataProblem(f"names of classes are not UTF-8: {label!r}; give them as text") from error
