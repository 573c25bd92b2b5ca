from __future__ import annotations

import pytest
import torch

from deeppatch.hybrid.oracle import BudgetExceeded, Oracle

LABELS = torch.tensor([5, 6, 7, 8, 9])


def test_labels_are_those_of_the_places_asked_for():
    oracle = Oracle(LABELS, 3)
    assert oracle.query(torch.tensor([4, 0])).tolist() == [9, 5]
    assert oracle.labels_bought == 2


def test_asking_again_costs_nothing():
    oracle = Oracle(LABELS, 2)
    for _ in range(3):
        assert oracle.query(torch.tensor([1, 1, 3])).tolist() == [6, 6, 8]
    assert oracle.labels_bought == 2


def test_one_too_many_is_refused_and_not_counted():
    oracle = Oracle(LABELS, 2)
    oracle.query(torch.tensor([0]))
    with pytest.raises(BudgetExceeded, match="3 distinct labels queried, but the budget is 2"):
        oracle.query(torch.tensor([1, 2]))
    assert oracle.labels_bought == 1
    oracle.query(torch.tensor([1]))
    with pytest.raises(BudgetExceeded):
        oracle.query(torch.tensor([4]))


def test_where_nobody_has_labels_yet_they_are_unknown_and_counted():
    oracle = Oracle(None, 2)
    assert oracle.query(torch.tensor([3, 1])).tolist() == [-1, -1]
    assert oracle.labels_bought == 2
    with pytest.raises(BudgetExceeded):
        oracle.query(torch.tensor([0]))
