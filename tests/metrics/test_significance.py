"""Exact tests and bounds against scipy, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from deeppatch import metrics
from deeppatch.errors import UserError

COUNTS = [(15, 5, 100), (5, 15, 100), (0, 6, 50), (1, 0, 10), (40, 38, 1000), (300, 350, 2000)]


@pytest.mark.parametrize(("repaired", "broken", "images"), COUNTS)
def test_mcnemar_is_the_exact_binomial_test(repaired, broken, images):
    found = metrics.mcnemar(repaired, broken, images)
    changed = repaired + broken
    assert found.p == pytest.approx(binomtest(repaired, changed, 0.5).pvalue)
    smaller = min(repaired, broken)
    exactly = math.comb(changed, smaller) / 2**changed
    assert found.mid_p == pytest.approx(
        2 * sum(math.comb(changed, k) for k in range(smaller + 1)) / 2**changed - exactly
    )
    values = np.r_[np.ones(repaired), -np.ones(broken), np.zeros(images - changed)]
    assert found.difference == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std() / images**0.5)


@pytest.mark.parametrize("changed", [0, 1, 20, 500])
def test_as_many_repaired_as_broken_is_no_difference(changed):
    found = metrics.mcnemar(changed, changed, 2000)
    assert (found.p, found.difference) == (1, 0)
    assert found.mid_p == pytest.approx(1)


@pytest.mark.parametrize("counts", [(-1, 2, 10), (6, 5, 10), (0, 0, 0)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(UserError, match="cannot be"):
        metrics.mcnemar(*counts)
    with pytest.raises(UserError, match="cannot be"):
        metrics.non_inferiority(*counts, margin=0.01)


@pytest.mark.parametrize(("count", "total"), [(0, 20), (1, 20), (10, 37), (20, 20)])
def test_share_intervals_are_those_of_clopper_and_pearson(count, total):
    want = binomtest(count, total).proportion_ci(0.95, method="exact")
    found = metrics.share_interval(count, total)
    assert (found.estimate, found.low, found.high) == pytest.approx((count / total, want.low, want.high))
    low = binomtest(count, total, alternative="greater").proportion_ci(0.95, method="exact").low
    high = binomtest(count, total, alternative="less").proportion_ci(0.95, method="exact").high
    assert (metrics.lower_share(count, total), metrics.upper_share(count, total)) == pytest.approx((low, high))
    assert metrics.upper_share(count, total) == metrics.upper_bound(count, total)


def test_a_share_of_nothing_is_unknown():
    found = metrics.share_interval(0, 0)
    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (0, 1)


@pytest.mark.parametrize(
    ("repaired", "broken", "images"), [(15, 5, 100), (5, 15, 100), (0, 6, 50), (3, 0, 40), (2, 90, 95)]
)
def test_the_bound_of_a_loss_solves_the_score_equation(repaired, broken, images):
    """With the likelihood maximised by search, given the loss."""
    found = metrics.non_inferiority(repaired, broken, images, 0.1)
    bound, rest = found.upper, images - repaired - broken

    def unlikely(share: float) -> float:
        cells = (share + bound, broken), (share, repaired), (1 - 2 * share - bound, rest)
        return -sum(count * math.log(max(chance, 1e-300)) for chance, count in cells if count)

    share = minimize_scalar(unlikely, bounds=(0, (1 - bound) / 2), method="bounded", options={"xatol": 1e-12}).x
    deviation = (images * (2 * share + bound * (1 - bound))) ** 0.5
    assert (broken - repaired - images * bound) / deviation == pytest.approx(-1.6448536, abs=1e-3)
    assert found.loss == pytest.approx((broken - repaired) / images)


def test_no_loss_is_shown_by_many_images_only():
    z = 1.6448536269514722
    for images, shown in ((100, False), (1000, False), (10_000, True)):
        found = metrics.non_inferiority(0, 0, images, margin=0.001)
        assert found.upper == pytest.approx(z**2 / (images + z**2))
        assert found.shown is shown
    assert metrics.non_inferiority(0, 7, 7, 0.5).upper == 1
    assert metrics.non_inferiority(7, 0, 7, 0.0).shown


@pytest.mark.parametrize("shares", [(0.02, 0.03), (0.001, 0.006)])
def test_the_bound_of_a_loss_holds_in_95_of_100_samples(shares):
    generator, images = np.random.default_rng(5), 1500
    held = []
    for repaired, broken, _ in generator.multinomial(images, (*shares, 1 - sum(shares)), 800):
        held.append(metrics.non_inferiority(int(repaired), int(broken), images, 0.0).upper >= shares[1] - shares[0])
    assert 0.93 <= np.mean(held) <= 0.98


def test_holm_rejects_as_the_step_down_procedure_does():
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = dict(zip("abcdef", generator.random(6) ** 4, strict=True))
        found = metrics.holm(values)
        assert list(found) == list(values)
        rejected, left = set(), sorted(values, key=lambda name: values[name])
        while left and values[left[0]] <= 0.05 / len(left):
            rejected.add(left.pop(0))
        assert {name for name, p in found.items() if p <= 0.05} == rejected
    assert metrics.holm({}) == {}
    assert metrics.holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1}


def test_seeds_have_a_sample_deviation():
    found = metrics.over_seeds([2.0, 4.0, 9.0])
    assert found == pytest.approx((5, np.std([2, 4, 9], ddof=1), 3))
    assert math.isnan(metrics.over_seeds([2.0]).deviation)
    with pytest.raises(UserError, match="at least one seed"):
        metrics.over_seeds([])
