"""Measures against counts by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_1samp
from torch import Tensor

from deeppatch import metrics

LEVELS = ("s=0.5", "s=1", "s=3")
VIEWS = ["clean", *LEVELS]
SUMMARIES = ["mean", "append"]


def answers(seed: int, share: float = 0.6, images: int = 25) -> Tensor:
    """Correct or wrong, (levels + 1, images)."""
    return torch.rand(4, images, generator=torch.Generator().manual_seed(seed)) < share


def test_accuracy_is_a_share():
    assert metrics.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 0.5
    assert metrics.accuracy(torch.tensor([1]), torch.tensor([1])) == 1.0


@pytest.fixture
def routed() -> tuple[Tensor, Tensor]:
    """Scores with ties and without, rising with the level, and the decisions of a threshold."""
    draw = torch.Generator().manual_seed(3)
    found = torch.randn(4, 17, generator=draw).double() + torch.tensor([0.0, -0.5, 0.5, 2.0]).view(4, 1)
    found = (found * 2).round() / 2
    return found, found > 0.5


def test_views_are_named_by_level():
    assert metrics.view_names(LEVELS) == VIEWS


def test_accuracies_by_hand():
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert metrics.accuracies(right, LEVELS) == pytest.approx(
        {"clean": 100.0, "s=0.5": 75.0, "s=1": 25.0, "s=3": 0.0, "mean": 100 / 3, "append": 50.0}
    )
    assert list(metrics.accuracies(right, LEVELS)) == VIEWS + SUMMARIES


def test_append_is_the_share_of_all_answers():
    right = answers(0)
    found = metrics.accuracies(right, LEVELS)
    assert found["append"] == pytest.approx(100 * right.double().mean().item())
    assert found["mean"] == pytest.approx(100 * right[1:].double().mean().item())
    with pytest.raises(ValueError, match="argument"):
        metrics.accuracies(right[:3], LEVELS)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_is_that_before_plus_repair_minus_break(seed):
    before, right = answers(seed, 0.5), answers(seed + 100, 0.7)
    changed = metrics.repair_and_break_rates(right, before, LEVELS)
    was, now = metrics.accuracies(before, LEVELS), metrics.accuracies(right, LEVELS)
    assert set(changed) == {"repair", "break"}
    for view in VIEWS + SUMMARIES:
        assert now[view] == pytest.approx(was[view] + changed["repair"][view] - changed["break"][view])
        assert changed["repair"][view] > 0
        assert changed["break"][view] > 0


def test_repair_is_from_wrong_to_right_and_break_the_other_way():
    before = torch.tensor([[1, 0, 0, 0]] * 4, dtype=torch.bool)
    right = torch.tensor([[0, 1, 1, 0]] * 4, dtype=torch.bool)
    changed = metrics.repair_and_break_rates(right, before, LEVELS)
    assert changed["repair"] == dict.fromkeys(VIEWS + SUMMARIES, 50.0)
    assert changed["break"] == dict.fromkeys(VIEWS + SUMMARIES, 25.0)
    same = metrics.repair_and_break_rates(before, before, LEVELS)
    assert set(same["repair"].values()) | set(same["break"].values()) == {0.0}


def pairs(clean: list[float], degraded: list[float]) -> float:
    """AUROC as the share of pairs in which the degraded sample scores higher, ties counted half."""
    won = sum((d > c) + 0.5 * (d == c) for c in clean for d in degraded)
    return won / (len(clean) * len(degraded))


def test_scorecard_equals_plain_counts(routed):
    found, moved = routed
    card = metrics.router_metrics(found, moved, LEVELS)
    table = found.tolist()
    assert card["auroc"] == pytest.approx({
        "s=0.5": pairs(table[0], table[1]), "s=1": pairs(table[0], table[2]), "s=3": pairs(table[0], table[3]),
        "mean": pairs(table[0], table[1] + table[2] + table[3]),
    })  # fmt: skip
    assert card["auroc"]["s=0.5"] < 0.5 < card["auroc"]["s=3"]
    stayed = [sum(not moved_one for moved_one in row) for row in moved.tolist()]
    assert card["false_switch_percent"] == pytest.approx(100 * (17 - stayed[0]) / 17)
    assert card["missed_switch_percent"] == pytest.approx({
        "s=0.5": 100 * stayed[1] / 17, "s=1": 100 * stayed[2] / 17, "s=3": 100 * stayed[3] / 17,
        "mean": 100 * sum(stayed[1:]) / 51,
    })  # fmt: skip
    assert json.loads(json.dumps(card)) == card, "metrics.json holds it"


def test_perfect_and_useless_routers():
    found = torch.tensor([[0.0] * 5, [1.0] * 5, [2.0] * 5, [3.0] * 5])
    card = metrics.router_metrics(found, found > 0.5, LEVELS)
    assert set(card["auroc"].values()) == {1.0}
    assert card["false_switch_percent"] == 0
    assert set(card["missed_switch_percent"].values()) == {0.0}
    card = metrics.router_metrics(torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool), LEVELS)
    assert set(card["auroc"].values()) == {0.5}
    assert card["false_switch_percent"] == 0
    assert set(card["missed_switch_percent"].values()) == {100.0}


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
