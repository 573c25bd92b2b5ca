"""Classes and groups against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from deeppatch import metrics
from deeppatch.errors import UserError

CLASSES = 4


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels of all classes but the last, two sets of predictions and a group."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES - 1, 50)
    one, two = (np.where(generator.random(50) < 0.7, labels, generator.integers(0, CLASSES, 50)) for _ in range(2))
    return labels, one, two, generator.random(50) < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_worst_class_and_largest_drop_equal_plain_loops(seed):
    labels, before, after, _ = drawn(seed)
    rates = []
    for predictions in (before, after):
        of_class = [[p == y for p, y in zip(predictions, labels, strict=True) if y == c] for c in range(CLASSES - 1)]
        rates.append([100 * sum(each) / len(each) for each in of_class])
    found = metrics.class_accuracies(after == labels, labels, CLASSES)
    assert found[:-1] == pytest.approx(rates[1])
    assert np.isnan(found[-1]), "a class without images"
    worst = metrics.worst_class(after == labels, labels, CLASSES)
    assert worst.value == pytest.approx(min(rates[1]))
    assert rates[1][worst.label] == pytest.approx(worst.value)
    drops = [was - now for was, now in zip(*rates, strict=True)]
    assert metrics.largest_class_drop(after == labels, before == labels, labels, CLASSES) == pytest.approx(
        (int(np.argmax(drops)), max(drops))
    )


def rate(predictions: list[int], labels: list[int], label: int, *, of_class: bool) -> float:
    """The true positive rate of a class, or the false positive one."""
    chosen = [p == label for p, y in zip(predictions, labels, strict=True) if (y == label) == of_class]
    return sum(chosen) / len(chosen) if chosen else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_aaod_equals_the_plain_definition(seed):
    labels, predictions, _, group = drawn(seed)
    parts = [(predictions[group == side].tolist(), labels[group == side].tolist()) for side in (True, False)]
    total = 0.0
    for label in range(CLASSES):
        for of_class in (True, False):
            one, two = (rate(*part, label, of_class=of_class) for part in parts)
            total += abs(one - two)
    assert metrics.aaod(predictions, labels, group, CLASSES) == pytest.approx(total / CLASSES / 2)


def test_aaod_of_groups_that_are_treated_alike_is_zero():
    labels, predictions, _, _ = drawn(0)
    group = np.repeat([True, False], 50)
    assert metrics.aaod(np.tile(predictions, 2), np.tile(labels, 2), group, CLASSES) == 0
    with pytest.raises(UserError, match="two groups"):
        metrics.aaod(predictions, labels, np.ones(50, bool), CLASSES)
