"""Gradients of new filters alone against those that autograd has of the plain form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.patching import units
from deeppatch.patching.filter_gradients import can_spare, gradient_of_filters, maps_of, with_new_filters
from deeppatch.patching.training import fit_patch
from deeppatch.training import accuracy_on, degraded_epochs

CHANNELS = torch.tensor([1, 4, 5])
VARIANTS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 0, "bias": True},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "padding": (0, 4), "dilation": (2, 1), "bias": True},
    {"kernel_size": 1},
    {"kernel_size": 1, "padding": 1},  # which the turned form cannot have
]


def plain(x, rows, conv, channels, bias):
    weight = conv.weight.detach().clone().index_copy_(0, channels, rows)
    return conv._conv_forward(x, weight, bias)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("inputs", [2, 8], ids=["fewer-inputs", "more-inputs"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_plain_form(variant, inputs, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, 7, **{"bias": False, **variant}).double().to(memory_format=layout).requires_grad_(False)
    x = torch.randn(3, inputs, 9, 11, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    rows = torch.randn(3, *conv.weight.shape[1:], dtype=torch.float64, requires_grad=True)
    found, expected = (form(x, rows, conv, CHANNELS, conv.bias) for form in (with_new_filters, plain))
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, rows), upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [0, 3])
def test_maps_of_some_channels_are_these_also_where_a_rank_has_no_image(images, layout):
    maps, channels = torch.rand(images, 8, 5, 6).contiguous(memory_format=layout), torch.tensor([6, 1])
    assert torch.equal(maps_of(maps, channels), maps[:, channels])


def test_the_turned_form_takes_the_place_of_the_other_only_where_it_can(monkeypatch):
    taken = []
    kernel = torch.ops.aten.convolution_backward
    counting = type("", (), {"convolution_backward": lambda *args: taken.append(args[0].shape[1]) or kernel(*args)})
    monkeypatch.setattr(torch.ops, "aten", counting)
    x, gradient = torch.randn(2, 8, 6, 6), torch.randn(2, 3, 6, 6)
    for conv in (nn.Conv2d(8, 7, 3, padding=1), nn.Conv2d(8, 7, 5, padding=2, stride=2), nn.Conv2d(2, 7, 3, padding=1)):
        out = conv(x[:, : conv.in_channels])
        given = gradient[:, :, : out.shape[2], : out.shape[3]].contiguous()
        gradient_of_filters(given, x[:, : conv.in_channels].contiguous(), conv.weight[:3].detach(), conv)
    assert taken == [8, 3, 3], "what stands in the place of the output: the input, then the gradients"


@pytest.mark.parametrize(
    ("conv", "spared"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), True),
        (nn.Conv2d(4, 4, 3, padding="same"), False),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), False),
    ],
)
def test_other_paddings_and_bfloat16_keep_the_plain_form(conv, spared):
    x = torch.zeros(1, 4, 5, 5)
    assert can_spare(conv, x) is spared
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_spare(conv, x)


def test_an_epoch_leaves_the_weights_of_the_plain_form_and_the_same_bytes_again(tiny, images, blur, monkeypatch):
    taken = []

    def noted(*given):
        taken.append(given[3])
        return with_new_filters(*given)

    def trained(*, spare: bool):
        monkeypatch.setattr(units, "with_new_filters", noted)
        monkeypatch.setattr(units, "can_spare", can_spare if spare else lambda *_: False)
        torch.manual_seed(0)
        epochs = degraded_epochs(images, blur, epochs=1, batch_size=8, seed=1)
        channels = {"conv1": [0, 3], "conv2": [1, 2], "conv3": [4]}
        example = torch.rand(2, 3, *images.pixels.shape[-2:])
        return fit_patch(copy.deepcopy(tiny), channels, "replace", epochs, accuracy_on(images), example).tensors

    first, again = trained(spare=True), trained(spare=True)
    count = len(taken)
    assert count > 0
    expected = trained(spare=False)
    assert len(taken) == count
    assert all(torch.equal(first[name], again[name]) for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
