"""Fairness with classes and groups of images: the worst class, the largest drop of a class, and AAOD."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deeppatch.errors import UserError
from deeppatch.metrics.changes import Array


class OfClass(NamedTuple):
    """A class, by its number, and its value in percent or points."""

    label: int
    value: float


def class_accuracies(correct: Array, labels: Array, classes: int) -> np.ndarray:
    """Return the accuracy of each class in percent, float64 (classes,); nan for a class without images.

    Args:
        correct: Which images are classified correctly, bool (N,).
        labels: Their labels (N,), from 0 to classes - 1.
        classes: The number of classes.

    >>> class_accuracies(np.array([True, False, True]), np.array([0, 0, 1]), 3).tolist()
    [50.0, 100.0, nan]
    """
    images = np.bincount(np.asarray(labels), minlength=classes)
    right = np.bincount(np.asarray(labels), np.asarray(correct, dtype=float), classes)
    return np.divide(100 * right, images, out=np.full(classes, np.nan), where=images > 0)


def worst_class(correct: Array, labels: Array, classes: int) -> OfClass:
    """Return the class with the lowest accuracy, the first of several, and its accuracy in percent.

    >>> worst_class(np.array([True, False, True]), np.array([0, 0, 1]), 2)
    OfClass(label=0, value=50.0)
    """
    found = class_accuracies(correct, labels, classes)
    label = int(np.nanargmin(found))
    return OfClass(label, float(found[label]))


def largest_class_drop(after: Array, before: Array, labels: Array, classes: int) -> OfClass:
    """Return the class whose accuracy falls most, the first of several, and its drop in points.

    The drop is accuracy before minus accuracy after; it is negative where every class gains.

    >>> largest_class_drop(np.array([True, True, False]), np.array([False, True, True]), np.array([0, 0, 1]), 2)
    OfClass(label=1, value=100.0)
    """
    drops = class_accuracies(before, labels, classes) - class_accuracies(after, labels, classes)
    label = int(np.nanargmax(drops))
    return OfClass(label, float(drops[label]))


def aaod(predictions: Array, labels: Array, group: Array, classes: int) -> float:
    """Return the average absolute odds difference between two groups of images, as a share in [0, 1]; 0 is fair.

    AAOD = (mean_c |TPR_c(g1) - TPR_c(g2)| + mean_c |FPR_c(g1) - FPR_c(g2)|) / 2, each class c against the rest; a rate
    of a group that has no image of the class, or no other, is 0 (You et al., A comprehensive study of deep learning
    model fixing approaches, ICSE 2026).

    Args:
        predictions: The predicted classes (N,).
        labels: The labels (N,).
        group: Which of the two groups each image belongs to, bool (N,), such as clean and degraded.
        classes: The number of classes.

    Raises:
        UserError: When a group is empty.

    >>> aaod(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), np.array([False, False, True, True]), 2)
    0.5
    """
    member = np.asarray(group, dtype=bool)
    if member.all() or not member.any():
        raise UserError("AAOD compares two groups of images; all images are in one")
    rates = []
    for chosen in (member, ~member):
        table = np.zeros((classes, classes))
        np.add.at(table, (np.asarray(labels)[chosen], np.asarray(predictions)[chosen]), 1)
        hits, of_class, predicted = table.diagonal(), table.sum(1), table.sum(0)
        others = table.sum() - of_class
        true = np.divide(hits, of_class, out=np.zeros(classes), where=of_class > 0)
        false = np.divide(predicted - hits, others, out=np.zeros(classes), where=others > 0)
        rates.append((true, false))
    differences = [np.abs(one - two).mean() for one, two in zip(*rates, strict=True)]
    return float(sum(differences) / 2)
