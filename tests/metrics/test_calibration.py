"""Calibration against plain loops, and where the answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deeppatch import metrics
from deeppatch.errors import UserError


def logits_and_labels(images: int = 40, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return 2 * generator.normal(size=(images, classes)), generator.integers(0, classes, images)


def test_answers_equal_a_softmax_by_hand():
    logits, labels = logits_and_labels()
    found = metrics.answers(logits, labels)
    for row, y, *values in zip(
        logits.tolist(),
        labels.tolist(),
        found.prediction,
        found.confidence,
        found.log_likelihood,
        found.brier,
        strict=True,
    ):
        total = sum(math.exp(each) for each in row)
        p = [math.exp(each) / total for each in row]
        brier = sum((each - (c == y)) ** 2 for c, each in enumerate(p))
        assert values == pytest.approx([p.index(max(p)), max(p), math.log(p[y]), brier])


def test_answers_are_computed_in_float64_from_logits_of_any_type():
    logits, labels = logits_and_labels()
    narrow = torch.tensor(logits, dtype=torch.float32)
    found = metrics.answers(narrow, labels)
    assert found.confidence.dtype == np.float64
    expected = F.log_softmax(narrow.double(), 1)[torch.arange(40), torch.tensor(labels)]
    assert found.log_likelihood == pytest.approx(expected.numpy(), rel=1e-13)
    assert metrics.negative_log_likelihood(found.log_likelihood) == pytest.approx(
        F.cross_entropy(narrow.double(), torch.tensor(labels)).item()
    )
    assert metrics.answers(logits + 5000, labels).brier == pytest.approx(metrics.answers(logits, labels).brier)


@pytest.mark.parametrize(("label", "ece", "nll", "brier"), [(0, 0.0, 0.0, 0.0), (1, 1.0, math.inf, 2.0)])
def test_a_one_hot_answer_that_is_right_or_wrong(label, ece, nll, brier):
    found = metrics.answers(np.array([[0.0, -np.inf, -np.inf]] * 3), np.full(3, label))
    for binning in metrics.BINNINGS:
        assert metrics.calibration_error(found.confidence, found.prediction == label, binning) == metrics.Calibration(
            ece, ece
        )
    assert metrics.negative_log_likelihood(found.log_likelihood) == nll
    assert metrics.brier_score(found.brier) == brier


def test_uniform_answers_have_the_gap_between_chance_and_accuracy():
    labels = np.arange(100) % 4
    found = metrics.answers(np.zeros((100, 4)), labels)
    right = found.correct(labels)
    right[:20] = True
    width = metrics.calibration_error(found.confidence, right)
    assert width.ece == pytest.approx(abs(0.25 - right.mean()))
    assert metrics.calibration_error(found.confidence, right, "mass").ece >= width.ece - 1e-12


def ece_by_hand(confidence: list[float], correct: list[bool], runs: list[list[int]]) -> tuple[float, float]:
    gaps = [
        (len(run), abs(sum(correct[i] for i in run) - sum(confidence[i] for i in run)) / len(run))
        for run in runs
        if run
    ]
    return sum(size * gap for size, gap in gaps) / len(confidence), max(gap for _, gap in gaps)


@pytest.mark.parametrize("images", [7, 15, 100])
def test_ece_equals_the_plain_definition(images):
    generator = np.random.default_rng(images)
    confidence = np.round(generator.uniform(0.2, 1, images), 1)  # ties, and values on the border of bins
    correct = generator.random(images) < 0.6
    sure, right = confidence.tolist(), correct.tolist()
    by_width = [[i for i, each in enumerate(sure) if (m - 1) / 15 < each <= m / 15] for m in range(1, 16)]
    assert sum(map(len, by_width)) == images
    order, by_mass = sorted(range(images), key=lambda i: (sure[i], i)), []
    for m in range(15):
        by_mass.append([order.pop(0) for _ in range(images // 15 + (m < images % 15))])
    for binning, runs in (("width", by_width), ("mass", by_mass)):
        found = metrics.calibration_error(confidence, correct, binning)
        assert (found.ece, found.gap) == pytest.approx(ece_by_hand(sure, right, runs))
        assert [sorted(np.flatnonzero(metrics.bin_of(confidence, binning) == m)) for m in range(15)] == [
            sorted(r) for r in runs
        ]


def test_unknown_binning_and_no_images_are_refused():
    with pytest.raises(UserError, match="width, mass"):
        metrics.calibration_error(np.array([0.5]), np.array([True]), "equal")
    with pytest.raises(UserError, match="no"):
        metrics.calibration_error(np.array([]), np.array([]))


def test_temperature_has_the_smallest_nll_of_a_grid():
    logits, labels = logits_and_labels(200, 4, seed=1)
    logits[np.arange(200), labels] += 1.5

    def nll(temperature: float) -> float:
        return metrics.negative_log_likelihood(metrics.answers(logits / temperature, labels).log_likelihood)

    found = metrics.fit_temperature(logits, labels)
    grid = np.exp(np.linspace(-3, 3, 601))
    best = grid[np.argmin([nll(each) for each in grid])]
    assert found == pytest.approx(best, rel=0.02)
    assert found > 1.1, "too sure"
    assert nll(found) <= min(nll(0.999 * found), nll(1.001 * found))
    assert metrics.fit_temperature(3 * logits, labels) == pytest.approx(3 * found)


def test_temperature_is_bounded_where_there_is_no_minimum():
    logits = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert metrics.fit_temperature(logits, np.array([0, 1])) == 0.01
    assert metrics.fit_temperature(logits, np.array([1, 0])) == 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match="not finite"):
        metrics.answers(np.array([[0.0, value]]), np.array([0]))
    with pytest.raises(UserError, match="not finite"):
        metrics.answers(np.array([[-np.inf, -np.inf]]), np.array([0]))
    with pytest.raises(UserError, match="finite"):
        metrics.fit_temperature(np.array([[0.0, -np.inf]]), np.array([0]))
    with pytest.raises(UserError, match=r"\(N, C\)"):
        metrics.answers(np.zeros((2, 3)), np.array([0]))
