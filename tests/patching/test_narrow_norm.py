"""Batch normalisation of few channels against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.patching.narrow_norm import is_narrow, normalise


def drawn(channels: int, *shape: int) -> tuple[nn.BatchNorm2d, torch.Tensor]:
    """A normalisation with drawn weights and statistics, and maps in channels_last, in float64."""
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels, momentum=0.3).double()
    for each in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(each)
    maps = (3 * torch.randn(shape[0], channels, *shape[1:], dtype=torch.float64) + 5).contiguous(
        memory_format=torch.channels_last
    )
    return norm, maps.requires_grad_()


@pytest.mark.parametrize("shape", [(4, 3, 5, 8), (3, 2, 4, 4), (1, 8, 3, 16), (15, 8, 1, 1)], ids=str)
def test_values_gradients_and_statistics_are_those_of_torch(shape):
    norm, maps = drawn(shape[0], *shape[1:])
    usual, same = copy.deepcopy(norm), maps.detach().clone().requires_grad_()
    steer = torch.randn_like(maps)
    found, expected = normalise(norm, maps).relu_(), usual(same).relu_()
    torch.testing.assert_close(found, expected)
    found.backward(steer)
    expected.backward(steer)
    torch.testing.assert_close(maps.grad, same.grad)
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)
    for name, parameter in usual.named_parameters():
        torch.testing.assert_close(norm.get_parameter(name).grad, parameter.grad)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_it_takes_the_place_of_what_it_equals_alone():
    def maps(channels: int, *, height: int = 4, count: int = 2) -> torch.Tensor:
        return torch.zeros(count, channels, height, 4).contiguous(memory_format=torch.channels_last)

    norm = nn.BatchNorm2d(4)
    assert is_narrow(norm, maps(4))
    assert not is_narrow(norm, maps(4, height=3, count=1)), "12 pixels are no whole number of eight"
    assert not is_narrow(nn.BatchNorm2d(16), maps(16)), "16 channels fill a vector"
    assert not is_narrow(norm, maps(4).contiguous())
    assert not is_narrow(norm, maps(4).double())
    assert not is_narrow(nn.ReLU(), maps(4))
    assert not is_narrow(nn.BatchNorm2d(4, momentum=None), maps(4)), "its statistics are a plain mean"
    assert not is_narrow(nn.BatchNorm2d(4).eval(), maps(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_narrow(norm, maps(4))
    vars(norm)["forward"] = lambda x: x
    assert not is_narrow(norm, maps(4)), "several processes normalise together"
