"""How long networks take: a network that waits takes at least as long as it waits."""

from __future__ import annotations

import time

import torch
from torch import nn

from deeppatch.ledger.latency import RUNS_ALONE, RUNS_OF_BATCH, latencies


class Waiting(nn.Module):
    """Waits for two milliseconds, whatever the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, pixels):
        time.sleep(0.002)
        assert not self.training
        return self.layer(pixels.flatten(1))


def test_milliseconds_are_of_an_image():
    waiting = Waiting().train()
    found = latencies(
        {"waiting": waiting, "quick": nn.Sequential(nn.Flatten(), nn.Linear(12, 3))}, torch.rand(8, 3, 2, 2)
    )
    assert waiting.training
    assert found["network"].tolist() == ["waiting", "waiting", "quick", "quick"]
    assert found["batch"].tolist() == [1, 8, 1, 8]
    assert found["runs"].tolist() == [RUNS_ALONE, RUNS_OF_BATCH] * 2
    alone, batch, *quick = found["milliseconds"]
    assert alone >= 2
    assert 0.25 <= batch < alone
    assert max(quick) < alone
    assert set(found["device"]) == {"cpu"}
