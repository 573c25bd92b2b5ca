"""Robust accuracy over many neighbours of each image: against a plain count, and neighbours that differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch import runtime
from deeppatch.data.corruptions import Spatial
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.neighbours import ALL, OVERALL, SHARE, right_neighbours, robust_accuracy


@pytest.fixture
def few(images) -> Images:
    return images.take(torch.arange(12))


def test_each_neighbour_is_counted_once(tiny, few):
    spatial = Spatial((2, 5))
    found = right_neighbours(tiny.train(), few, spatial, 4, batch_size=5)
    assert tiny.training
    tiny.eval()
    pixels = few.pixels.float() / 255
    for row in range(2):
        right = torch.zeros(12, dtype=torch.long)
        for number in range(4):
            generator = runtime.generator(0, "corrupt", f"neighbour {number}")
            with torch.no_grad():
                right += tiny(spatial(pixels, row + 1, generator)).argmax(1) == few.labels
        assert found[row].tolist() == right.tolist()
    assert 0 < found.sum() < 2 * 12 * 4


def test_neighbours_differ_from_each_other_and_are_the_same_for_every_network(few):
    seen: list[torch.Tensor] = []

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, pixels):
            seen.append(pixels.clone())
            return pixels.mean((2, 3))

    robust_accuracy({"one": Noting(), "another": Noting()}, few, Spatial((5,)), 3, batch_size=12)
    first, second = seen[:3], seen[3:]
    assert len({each.numpy().tobytes() for each in first}) == 3
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert all((one != other).flatten(1).any(1).all() for one, other in ((first[0], first[1]), (first[1], first[2])))


def test_shares_are_means_over_images_and_all_right_is_right_at_every_neighbour(tiny, few, monkeypatch):
    counts = torch.tensor([[4, 4, 2, 0], [4, 3, 4, 0]])
    monkeypatch.setattr("deeppatch.neighbours.right_neighbours", lambda *_given, **_named: counts)
    table = robust_accuracy({"mine": tiny}, few, Spatial((1, 2)), 4).set_index("measure")
    assert table.loc[SHARE].tolist() == ["mine", 62.5, 68.75, pytest.approx(65.625)]
    assert table.loc[ALL].tolist() == ["mine", 50.0, 50.0, 25.0]
    assert list(table.columns)[-1] == OVERALL


def test_versions_that_are_all_alike_are_refused(tiny, few, blur):
    with pytest.raises(UserError, match="one version of an image at each level; take spatial"):
        right_neighbours(tiny, few, blur, 2)
    with pytest.raises(UserError, match="neighbours=0"):
        right_neighbours(tiny, few, Spatial(), 0)
