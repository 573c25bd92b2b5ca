"""The measures of a router's decisions against counts by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from deeppatch import metrics

LEVELS = ("s=0.5", "s=1", "s=3")


@pytest.fixture
def routed() -> tuple[Tensor, Tensor]:
    """Scores with ties and without, rising with the level, and the decisions of a threshold."""
    draw = torch.Generator().manual_seed(3)
    found = torch.randn(4, 17, generator=draw).double() + torch.tensor([0.0, -0.5, 0.5, 2.0]).view(4, 1)
    found = (found * 2).round() / 2
    return found, found > 0.5


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
