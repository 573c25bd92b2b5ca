"""What a repair changes against counts by hand, and the identity that binds the rates to the accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeppatch import metrics


@pytest.mark.parametrize("seed", range(4))
def test_rates_equal_plain_counts(seed):
    generator = np.random.default_rng(seed)
    before, after = generator.random(60) < 0.6, generator.random(60) < 0.8
    pairs = list(zip(before.tolist(), after.tolist(), strict=True))
    found = metrics.count_changes(after, before)
    kept, repaired, broken, wrong = (
        pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False,) * 2)
    )
    assert found == metrics.Changes(60, repaired + wrong, repaired, broken)
    assert found.repair_rate == pytest.approx(100 * repaired / (repaired + wrong))
    assert found.negative_flip_rate == pytest.approx(100 * broken / 60)
    assert found.backward_trust == pytest.approx(100 * kept / (kept + broken))
    assert found.backward_error == pytest.approx(100 * wrong / (wrong + broken))
    assert found.accuracy_before == pytest.approx(100 * before.mean())
    assert found.accuracy_after == pytest.approx(100 * after.mean())
    assert found.accuracy_after == pytest.approx(
        found.accuracy_before + found.repair_rate * (100 - found.accuracy_before) / 100 - found.negative_flip_rate
    )


def test_rates_at_the_ends():
    right, wrong = np.ones(5, bool), np.zeros(5, bool)
    flawless, hopeless = metrics.count_changes(right, right), metrics.count_changes(wrong, wrong)
    assert math.isnan(flawless.repair_rate)
    assert (flawless.negative_flip_rate, flawless.backward_trust, flawless.backward_error) == (0, 100, 100)
    assert math.isnan(hopeless.backward_trust)
    assert (hopeless.repair_rate, hopeless.negative_flip_rate, hopeless.backward_error) == (0, 0, 100)
    assert metrics.count_changes(wrong, right).backward_error == 0, "all errors are new"
    assert metrics.count_changes(right, wrong).repair_rate == 100


@pytest.mark.parametrize("after", [np.ones(4, bool), np.ones((2, 5), bool)])
def test_changes_are_of_the_same_images(after):
    with pytest.raises(AssertionError, match="same images"):
        metrics.count_changes(after, np.ones(5, bool))
    with pytest.raises(AssertionError, match="same images"):
        metrics.flips(after, np.ones(5, bool))
    with pytest.raises(AssertionError, match="same images"):
        metrics.count_changes(np.ones(0, bool), np.ones(0, bool))


# accuracy before, after, RR and NFR as published by the fixing study: the first row is right, NFR of the last is not
@pytest.mark.parametrize(("before", "after", "repair_rate", "flips", "holds"), [
    (86.22, 85.93, 36.9, 5.4, True), (86.22, 86.53, 36.9, 5.4, False), (80.0, 80.0, math.nan, 0.0, True),
    (80.0, math.nan, 10.0, 0.0, False),
])  # fmt: skip
def test_the_identity_finds_a_table_that_is_wrong(before, after, repair_rate, flips, holds):
    if holds:
        metrics.check_identity(before, after, repair_rate, flips, tolerance=0.06)
    else:
        with pytest.raises(AssertionError, match="not of the same images"):
            metrics.check_identity(before, after, repair_rate, flips, tolerance=0.06)


def test_flips_count_predictions_that_changed_correct_or_not():
    assert metrics.flips(np.array([1, 2, 3, 4]), np.array([1, 0, 0, 4])) == 50
    assert metrics.flips(np.array([1]), np.array([1])) == 0
