"""Which convolutions can be ranked and patched, and what is said of the others."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deeppatch.errors import UserError
from deeppatch.graph.candidates import candidates
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import convolutions

EXAMPLE = torch.rand(2, 3, 8, 8)


class Standardised(nn.Conv2d):
    """Another computation under the same name, as timm's StdConv2d is."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Mixed(nn.Module):
    """One convolution of each kind; `plain` alone can be patched."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(3, 4, 3)
        self.plain = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.halves = nn.Conv2d(4, 4, 1, groups=2)
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.norm = nn.BatchNorm2d(4)
        self.standardised = Standardised(4, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.normed(self.halves(self.grouped(self.plain(x)))))
        return self.fc(self.twice(torch.relu(self.twice(self.standardised(x)))).mean((2, 3)))


def test_only_what_runs_once_and_can_be_replaced_is_a_candidate(caplog):
    network = Mixed().eval()
    with caplog.at_level(logging.INFO):
        assert list(candidates(network, EXAMPLE)) == ["plain"]
    assert caplog.messages == [
        "6 of 7 convolutions are neither ranked nor patched: 1 that are not called in a forward pass (unused); "
        "2 in groups (grouped, halves); 2 that compute something else than nn.Conv2d does (normed, standardised); "
        "1 that run more than once in a forward pass (twice)",
        "1 convolution is ranked and can be patched (plain), with 30.2 % of the network's parameters; other layers "
        "stay as they are, and fine-tuning changes all",
    ]
    assert list(convolutions(network)) == ["unused", "plain", "twice"]


def test_a_network_of_candidates_says_nothing(caplog, tiny):
    with caplog.at_level(logging.INFO):
        assert candidates(tiny.network, torch.rand(2, 3, 12, 12)).keys() == {"conv1", "conv2", "conv3"}
    assert caplog.messages == []


def test_a_weight_that_is_computed_is_not_folded_away():
    network = Mixed().eval()
    network.norm.running_mean.uniform_()
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(EXAMPLE), network(EXAMPLE))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), "this network has no nn.Conv2d;"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), "of its convolutions, 1 in groups (0);"),
        (nn.Sequential(*[nn.Conv2d(3, 3, 1, groups=3) for _ in range(5)]), "5 in groups (0, 1, 2, ...);"),
    ],
)
def test_without_a_candidate_the_reason_is_told(network, reason):
    with pytest.raises(UserError) as refusal:
        candidates(network, EXAMPLE)
    assert str(refusal.value).startswith("no filter can be ranked or patched: ")
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("; fine-tune this network instead (correct -c finetune)")
