from __future__ import annotations

import pytest
import torch

from deeppatch.hybrid.oracle import BudgetExceeded, Oracle

LABELS = torch.tensor([5, 6, 7, 8, 9])


def test_labels_are_those_of_the_places_asked_for():
    oracle = Oracle(LABELS, 3)
    assert oracle.ask(torch.tensor([4, 0])).tolist() == [9, 5]
    assert oracle.spent == 2


def test_asking_again_costs_nothing():
    oracle = Oracle(LABELS, 2)
    for _ in range(3):
        assert oracle.ask(torch.tensor([1, 1, 3])).tolist() == [6, 6, 8]
    assert oracle.spent == 2


def test_one_too_many_is_refused_and_not_counted():
    oracle = Oracle(LABELS, 2)
    oracle.ask(torch.tensor([0]))
    with pytest.raises(BudgetExceeded, match="3 distinct labels asked for, 2 may be"):
        oracle.ask(torch.tensor([1, 2]))
    assert oracle.spent == 1
    oracle.ask(torch.tensor([1]))
    with pytest.raises(BudgetExceeded):
        oracle.ask(torch.tensor([4]))


def test_where_nobody_has_labels_yet_they_are_unknown_and_counted():
    oracle = Oracle(None, 2)
    assert oracle.ask(torch.tensor([3, 1])).tolist() == [-1, -1]
    assert oracle.spent == 2
    with pytest.raises(BudgetExceeded):
        oracle.ask(torch.tensor([0]))
