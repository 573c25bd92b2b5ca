"""Intervals in closed form against those of scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_1samp
from torch import Tensor

from deeppatch import metrics


@pytest.mark.parametrize(("losses", "images"), [(0, 10), (0, 1000), (1, 100), (5, 100), (99, 100), (3, 7), (250, 1000)])
def test_upper_bound_is_the_exact_one_sided_interval(losses, images):
    exact = binomtest(losses, images, alternative="less").proportion_ci(0.95, method="exact").high
    assert metrics.upper_bound(losses, images) == pytest.approx(exact, rel=1e-9)
    two_sided = binomtest(losses, images).proportion_ci(0.90, method="exact").high
    assert metrics.upper_bound(losses, images) == pytest.approx(two_sided, rel=1e-9)


def test_upper_bound_where_everything_was_lost():
    assert metrics.upper_bound(10, 10) == 1.0


def table_of(both: int, gained: int, lost: int, neither: int) -> tuple[Tensor, Tensor]:
    """Correct predictions after and before, with so many images of each combination."""
    counts = torch.tensor([both, gained, lost, neither])
    rows = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=torch.bool).repeat_interleave(counts, 0)
    return rows[:, 0], rows[:, 1]


@pytest.mark.parametrize("counts", [(80, 15, 0, 5), (300, 0, 0, 60), (100, 7, 9, 30), (1, 1, 0, 0), (0, 0, 4, 0)])
def test_paired_difference_adds_half_an_image_to_each_cell(counts):
    """As Agresti and Min write it: a Wald interval of the table with 1/2 in each cell more."""
    both, gained, lost, neither = (count + 0.5 for count in counts)
    images = both + gained + lost + neither
    centre = (gained - lost) / images
    reach = 1.959963984540054 * ((gained + lost) - (gained - lost) ** 2 / images) ** 0.5 / images
    found = metrics.paired_difference(*table_of(*counts))
    assert found.estimate == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert (found.low, found.high) == pytest.approx((max(-1, centre - reach), min(1, centre + reach)))
    assert found.high > found.low, "also where nothing has changed"


def test_paired_difference_counts_an_image_once_however_many_views_it_has():
    after, before = table_of(70, 15, 5, 10)
    one, repeated = metrics.paired_difference(after, before), metrics.paired_difference(*table_of(280, 60, 20, 40))
    views = metrics.paired_difference(after.expand(4, -1), before.expand(4, -1))
    assert (views.low, views.high) == pytest.approx((one.low, one.high))
    assert views.high - views.low > 1.9 * (repeated.high - repeated.low)


def covered(interval, truth: float, draws: int = 2000) -> float:
    """The share of samples whose interval holds the truth; `interval` draws a sample and returns its interval."""
    generator = np.random.default_rng(4)
    found = [interval(generator) for _ in range(draws)]
    return sum(each.low <= truth <= each.high for each in found) / draws


@pytest.mark.parametrize("shares", [(0.85, 0.10, 0.02, 0.03), (0.94, 0.01, 0.03, 0.02)])
def test_paired_difference_holds_the_truth_in_95_of_100_samples(shares):
    def interval(generator: np.random.Generator) -> metrics.Interval:
        return metrics.paired_difference(*table_of(*generator.multinomial(200, shares)))

    assert covered(interval, shares[1] - shares[2]) == pytest.approx(0.955, abs=0.025)


def test_paired_difference_of_several_views_agrees_with_the_bootstrap():
    generator = np.random.default_rng(2)
    difficulty = generator.random(300)
    before, after = (generator.random((6, 300)) < np.clip(share + difficulty, 0, 1) for share in (-0.3, 0.1))
    changes = (after.astype(float) - before).mean(0)
    resampled = [generator.choice(changes, 300).mean() for _ in range(4000)]
    found = metrics.paired_difference(torch.tensor(after), torch.tensor(before))
    assert found.estimate == pytest.approx(changes.mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.01)


def test_unpaired_difference_holds_the_truth_in_95_of_100_samples():
    def interval(generator: np.random.Generator) -> metrics.Interval:
        return metrics.unpaired_difference(generator.binomial(150, 0.9) / 150, generator.binomial(150, 0.8) / 150, 150)

    assert covered(interval, 0.1) == pytest.approx(0.955, abs=0.025)


def test_unpaired_difference_is_the_wider_one_where_classifiers_agree():
    after, before = table_of(80, 10, 2, 8)
    paired = metrics.paired_difference(after, before)
    found = metrics.unpaired_difference(0.90, 0.82, 100)
    assert found.estimate == pytest.approx(paired.estimate)
    assert found.high - found.low > paired.high - paired.low


def test_mean_interval_is_that_of_a_t_test():
    values = [1.5, -0.5, 2.0, 0.25]
    found, want = metrics.mean_interval(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), want.low, want.high))


def test_mean_interval_of_one_value_is_unbounded():
    assert metrics.mean_interval([3.0]) == metrics.Interval(3.0, -np.inf, np.inf)


def test_views_of_other_images_are_independent_also_where_they_are_as_many():
    draw = np.random.default_rng(3)
    after, before = (tuple(torch.from_numpy(draw.random(200) < p) for _view in range(3)) for p in (0.8, 0.6))
    whole = metrics.paired_difference(after, before, groups=["a", "a", "b"])
    first, second = (
        metrics.paired_difference(torch.stack(after[rows]), torch.stack(before[rows]))
        for rows in (slice(0, 2), slice(2, 3))
    )
    assert whole.estimate == pytest.approx((2 * first.estimate + second.estimate) / 3)
    reach = ((2 / 3 * (first.high - first.low) / 2) ** 2 + (1 / 3 * (second.high - second.low) / 2) ** 2) ** 0.5
    assert (whole.high - whole.low) / 2 == pytest.approx(reach)
    assert metrics.paired_difference(after, before) == metrics.paired_difference(
        torch.stack(after), torch.stack(before)
    )
