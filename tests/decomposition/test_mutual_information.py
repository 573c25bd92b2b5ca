"""Mutual information of all pairs of classes, against scikit-learn's of each pair."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from deeppatch.decomposition.index_sets import membership
from deeppatch.decomposition.mutual_information import mutual_information


def drawn(width: int, sizes: list[int]) -> torch.Tensor:
    """Random sets of the sizes given, one a class."""
    draw = torch.Generator().manual_seed(width)
    rows = [membership(torch.randperm(width, generator=draw)[:size].view(1, -1), width) for size in sizes]
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("width", "sizes"),
    [
        (64, [5] * 10),
        (64, [32] * 10),
        (64, [1, 2, 5, 20, 33, 50, 63]),
        (2048, [10] * 8),
        (2048, [1, 10, 700, 2047]),
        (7, [3, 3, 4, 4]),
        (2, [1, 1]),
        (12, [0, 12, 5, 5]),
    ],
)
def test_every_pair_is_that_of_scikit_learn(width, sizes):
    members = drawn(width, sizes)
    found = mutual_information(members)
    want = [[mutual_info_score(one, other) for other in members.numpy()] for one in members.numpy()]
    assert (found.dtype, found.shape) == (torch.float64, (len(sizes), len(sizes)))
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_it_is_symmetric_and_never_below_zero():
    found = mutual_information(drawn(64, [1, 5, 5, 8, 32, 60]))
    torch.testing.assert_close(found, found.T, rtol=1e-13, atol=1e-16)
    assert (found >= 0).all()
    assert (found > 1e-6).any()


@pytest.mark.parametrize("size", [0, 20])
def test_an_empty_or_a_full_set_tells_nothing(size):
    found = mutual_information(drawn(20, [size, 3, 10, size]))
    assert found[0].tolist() == found[:, 3].tolist() == [0] * 4
    assert found[1, 1] > 0


def test_a_set_tells_its_own_entropy_and_its_complement_s():
    members = torch.zeros(2, 8, dtype=torch.bool)
    members[0, :2] = True
    members[1, 2:] = True
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert mutual_information(members).flatten().tolist() == pytest.approx([entropy] * 4, rel=1e-14)


def test_independent_sets_tell_nothing():
    members = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    assert mutual_information(members)[0, 1].item() == pytest.approx(0, abs=1e-15)
