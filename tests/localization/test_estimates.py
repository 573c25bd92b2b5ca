"""Estimates against the definitions that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.graph.hooks import convolutions, hooked
from deeppatch.localization.ablation import DegradedBatch
from deeppatch.localization.estimates import activation, taylor

METHODS = {"taylor": taylor, "activation": activation}


@pytest.fixture
def case(tiny, images, blur) -> tuple[nn.Module, list[DegradedBatch]]:
    """A network in double precision, and unequal batches of blurred images with their clean versions."""
    pixels = images.pixels.float() / 255
    clean, degraded = (tiny.normalize(part).double() for part in (pixels, blur(pixels, 1)))
    parts = zip(degraded.split([25, 25, 10]), images.labels.split([25, 25, 10]), clean.split([25, 25, 10]), strict=True)
    return tiny.network.double(), [DegradedBatch(*part) for part in parts]


@torch.no_grad()
def loss_at(network: nn.Module, samples: list[DegradedBatch], layer: str, channel: int, factor: float) -> float:
    """Return the mean loss when a channel of a layer is multiplied by `factor`."""

    def scale(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :channel], factor * output[:, channel : channel + 1], output[:, channel + 1 :]], 1)

    with hooked(network.get_submodule(layer), scale):
        losses = [F.cross_entropy(network(s.degraded), s.labels, reduction="sum").item() for s in samples]
    return sum(losses) / sum(len(s.labels) for s in samples)


def test_taylor_is_the_slope_of_the_loss_towards_silence(case):
    network, samples = case
    scores = taylor(network, samples, lambda: None)
    step = 1e-7
    for name, conv in convolutions(network).items():
        for channel in range(conv.out_channels):
            ahead, behind = (loss_at(network, samples, name, channel, 1 + way * step) for way in (-1, 1))
            assert scores[name][channel] == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-7)
    assert any(value < 0 for row in scores.values() for value in row), "silence helps somewhere"


@torch.no_grad()
def test_activation_is_the_mean_change_behind_the_normalisation(case):
    network, samples = case
    scores = activation(network, samples, lambda: None)
    clean, degraded = (torch.cat([getattr(s, key) for s in samples]) for key in ("clean", "degraded"))

    def maps(x: Tensor) -> list[Tensor]:
        first = network.bn1(network.conv1(x))
        second = network.bn2(network.conv2(first.relu()))
        return [first, second, network.conv3((second + first.relu()).relu())]

    for name, one, other in zip(("conv1", "conv2", "conv3"), maps(clean), maps(degraded), strict=True):
        assert scores[name] == pytest.approx((one - other).abs().mean((0, 2, 3)).tolist(), rel=1e-9)


def test_no_change_no_activation(case):
    network, samples = case
    same = [DegradedBatch(s.clean, s.labels, s.clean) for s in samples]
    assert {value for row in activation(network, same, lambda: None).values() for value in row} == {0.0}


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_alone_and_batches_do_not_matter(case, method):
    network, samples = case
    before, ticks = state_digest(network.state_dict()), []
    scores = METHODS[method](network, samples, lambda: ticks.append(1))
    assert len(ticks) == 3
    assert state_digest(network.state_dict()) == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    whole = DegradedBatch(*(torch.cat([getattr(s, key) for s in samples]) for key in ("degraded", "labels", "clean")))
    again = METHODS[method](network.train(), [whole], lambda: None)
    for name, row in scores.items():
        assert again[name] == pytest.approx(row, rel=1e-9), "or training mode does"


def test_frozen_networks_and_inplace_rectifiers_are_estimated_too():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    samples = [DegradedBatch(torch.randn(20, 3, 9, 9).double(), torch.arange(20) % 4)]
    scores = taylor(network, samples, lambda: None)
    ahead, behind = (loss_at(network, samples, "0", 2, factor) for factor in (1 - 1e-7, 1 + 1e-7))
    assert scores["0"][2] == pytest.approx((ahead - behind) / 2e-7, rel=1e-3, abs=1e-8)


def test_activation_needs_clean_images(case):
    network, samples = case
    with pytest.raises(ValueError, match="clean"):
        activation(network, [DegradedBatch(s.degraded, s.labels) for s in samples], lambda: None)
    assert not any(module._forward_hooks for module in network.modules())
