"""The impurity of predictions, and who is least pure."""

from __future__ import annotations

import pytest
import torch

from deeppatch.metrics.purity import impurity, least_pure


def test_the_least_pure_come_first():
    probabilities = torch.tensor([[1.0, 0, 0], [0.4, 0.3, 0.3], [0.5, 0.5, 0], [0.4, 0.3, 0.3]])
    assert least_pure(probabilities, 3).tolist() == [1, 3, 2]
    probabilities = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).mul(2).softmax(1)
    impurity = [1 - sum(p * p for p in row) for row in probabilities.tolist()]
    assert least_pure(probabilities, 7).tolist() == sorted(range(50), key=lambda place: -impurity[place])[:7]


def test_impurity_of_a_sure_an_even_and_a_two_class_prediction():
    assert impurity(torch.eye(4)).tolist() == [0, 0, 0, 0]
    assert impurity(torch.full((1, 4), 0.25)).item() == pytest.approx(1 - 1 / 4)
    share = torch.linspace(0, 1, 11)
    assert impurity(torch.stack([share, 1 - share], 1)).tolist() == pytest.approx((2 * share * (1 - share)).tolist())
