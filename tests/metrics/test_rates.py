"""Accuracies, and repair and break rates, against counts by hand."""

from __future__ import annotations

import pytest
import torch
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
