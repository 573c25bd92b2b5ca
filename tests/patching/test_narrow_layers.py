"""Convolution, normalisation and ReLU of few channels in one step, against torch's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deeppatch.patching.narrow_layers import _per_channel, are_narrow, in_one_step


def drawn(channels: int, size: int, *shape: int) -> tuple[nn.Sequential, Tensor]:
    """Three layers with drawn weights and statistics, and maps in channels_last, in float64."""
    torch.manual_seed(channels)
    conv = nn.Conv2d(shape[1], channels, size, padding=size // 2, bias=False)
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    for each in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(each)
    maps = (3 * torch.randn(shape, dtype=torch.float64) + 5).contiguous(memory_format=torch.channels_last)
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True)).double(), maps.requires_grad_()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(3, 4, 5, 8), (2, 3, 4, 4), (8, 1, 3, 16), (8, 15, 2, 1), (5, 2, 32, 32)], ids=str)
@pytest.mark.parametrize("channels", [1, 4, 15])
def test_values_gradients_and_statistics_are_those_of_torch(channels, size, shape):
    layers, maps = drawn(channels, size, *shape)
    usual, same = copy.deepcopy(layers), maps.detach().clone().requires_grad_()
    found, expected = in_one_step(maps, layers[0].weight, layers[1]), usual(same)
    torch.testing.assert_close(found, expected)
    steer = torch.randn_like(found)
    found.backward(steer)
    expected.backward(steer)
    torch.testing.assert_close(maps.grad, same.grad)
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value)
    for name, parameter in usual.named_parameters():
        torch.testing.assert_close(layers.get_parameter(name).grad, parameter.grad)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_sums_over_rows_are_those_of_each_number_of_threads():
    rows, threads = torch.randn(5 * 4096, 32, generator=torch.Generator().manual_seed(1)), torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(_per_channel(rows))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0].double(), rows.double().view(-1, 8, 4).sum((0, 1)), rtol=0, atol=1e-2)


def test_what_it_reads_stays_as_it_is_also_for_a_gradient_in_another_layout():
    layers, maps = drawn(4, 3, 2, 4, 4, 4)
    before = maps.detach().clone()
    found = in_one_step(maps, layers[0].weight, layers[1])
    steer = torch.randn(found.shape, dtype=found.dtype)
    given = steer.clone()
    first = torch.autograd.grad(found, maps, steer, retain_graph=True)[0]
    second = torch.autograd.grad(found, maps, steer.contiguous(memory_format=torch.channels_last))[0]
    torch.testing.assert_close(first, second)
    assert torch.equal(maps, before)
    assert torch.equal(steer, given)


def test_it_takes_the_place_of_what_it_equals_alone():
    def maps(*, height: int = 4, count: int = 2) -> Tensor:
        return torch.zeros(count, 3, height, 4).contiguous(memory_format=torch.channels_last)

    norm, filters = nn.BatchNorm2d(4), torch.zeros(4, 3, 3, 3)
    assert are_narrow(maps(), filters, norm)
    assert not are_narrow(maps(height=3, count=1), filters, norm), "12 pixels are no whole number of eight"
    assert not are_narrow(maps(), torch.zeros(16, 3, 3, 3), nn.BatchNorm2d(16)), "16 channels fill a vector"
    assert not are_narrow(maps().contiguous(), filters, norm)
    assert not are_narrow(maps().double(), filters, norm)
    assert not are_narrow(maps(), filters, nn.BatchNorm2d(4, momentum=None)), "its statistics are a plain mean"
    assert not are_narrow(maps(), filters, nn.BatchNorm2d(4).eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert not are_narrow(maps(), filters, norm)
    vars(norm)["forward"] = lambda x: x
    assert not are_narrow(maps(), filters, norm), "several processes normalise together"
