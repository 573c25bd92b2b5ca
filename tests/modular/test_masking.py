"""Smaller networks and masks on the whole one agree; hooks and slices leave the network as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import convolutions
from deeppatch.modular.extract import extract, multiply_adds, sliced
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import masked, masked_logits, replicas_of, sliced_logits
from deeppatch.zoo.architectures import ARCHITECTURES

LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("vgg13_bn", "resnet20", "mobilenetv2_x0_5")]
NETWORKS = ["simcnn_x0_125", "rescnn_x0_25", "resnet8", "resnet20a", *LARGE]


def by_masks(network, layers, masks, x):
    """The definition: the whole network with masks, (P, N, classes)."""
    with torch.no_grad():
        return masked_logits(network, layers, masks, x)


def case(name, lively):
    torch.manual_seed(4)
    network = lively(ARCHITECTURES[name](10))
    x = torch.rand(3, 3, 32, 32)
    layers = find_layers(network, x)
    masks = [torch.rand(2, layer.kernels) < 0.7 for layer in layers]
    for mask in masks:
        mask[:, 0] = True
    return network, layers, masks, x


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_and_smaller_networks_answer_the_same(name, lively):
    network, layers, masks, x = case(name, lively)
    before = state_digest(network.state_dict())
    by_mask, by_slice = by_masks(network, layers, masks, x), sliced_logits(network, layers, masks, x)
    assert torch.allclose(by_mask, by_slice, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(by_mask[0], by_mask[1])
    for row in range(2):
        small = extract(network, layers, [mask[row] for mask in masks])
        with torch.no_grad():
            assert torch.allclose(small(x), by_slice[row], atol=1e-6)
    assert state_digest(network.state_dict()) == before
    assert multiply_adds(small, x) < multiply_adds(network, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_modules_that_keep_all_kernels_are_the_whole_network(name, lively):
    network, layers, masks, x = case(name, lively)
    every = [torch.ones_like(mask[:1]) for mask in masks]
    with torch.no_grad():
        assert torch.equal(sliced_logits(network, layers, every, x)[0], network(x))


@pytest.mark.parametrize("name", ["simcnn_x0_125", "resnet20a", "mobilenetv2_x0_5"])
def test_smaller_networks_are_the_same_in_channels_last(name, lively):
    network, layers, masks, x = case(name, lively)
    kept = [mask[0] for mask in masks]
    small = extract(network, layers, kept).state_dict()
    last = extract(network.to(memory_format=torch.channels_last), layers, kept).state_dict()
    assert all(torch.equal(last[key], value) for key, value in small.items())
    wide = [value for value in last.values() if value.ndim == 4 and value.shape[1] > 1 and value.shape[2] > 1]
    assert wide
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in wide)


def test_in_inference_form_the_layers_and_answers_are_the_same(lively):
    network, layers, masks, x = case("resnet8", lively)
    quick = folded(network)
    again = find_layers(quick, x)
    assert [layer.name for layer in again] == [layer.name for layer in layers]
    assert torch.allclose(sliced_logits(quick, again, masks, x), sliced_logits(network, layers, masks, x), atol=1e-5)


def test_every_silenced_kernel_is_one_behind_activation_at_zero(lively):
    """The definition, on SimCNN: the output of each convolution times its mask, behind ReLU."""
    network, layers, masks, x = case("simcnn_x0_125", lively)
    plain = copy.deepcopy(network)
    handles = [
        plain.get_submodule(layer.name).register_forward_hook(
            lambda _module, _inputs, output, mask=mask: output.relu() * mask[0].view(1, -1, 1, 1)
        )
        for layer, mask in zip(layers, masks, strict=True)
    ]
    assert len(handles) == 13
    with torch.no_grad():
        assert torch.allclose(plain(x), by_masks(network, layers, masks, x)[0], atol=1e-6)


def test_behind_a_skip_too_every_silenced_kernel_is_at_zero(lively):
    """The definition, on ResCNN: what a block hands on times its mask, behind ReLU, pooling and the skip's sum."""
    network, layers, masks, x = case("rescnn_x0_25", lively)
    kept = {name: mask[0].view(1, -1, 1, 1) for layer, mask in zip(layers, masks, strict=True) for name in layer.convs}
    with torch.no_grad():
        expected = by_masks(network, layers, masks, x)[0]
        outs = []
        for number, (name, conv) in enumerate(convolutions(network).items()):
            x = conv(x).relu()
            x = F.max_pool2d(x, 2) if number in (1, 4, 5, 8, 9) else x
            x = x + outs[number - 2] if number in (3, 7, 11) else x
            outs.append(x := x * kept[name])
        assert len(outs) == 12
        assert torch.allclose(network.classifier(x), expected, atol=1e-6)


def test_nothing_is_left_behind(lively):
    network, layers, masks, x = case("resnet8", lively)
    state = {name: dict(vars(module)) for name, module in network.named_modules()}
    with pytest.raises(RuntimeError), masked(network, layers, masks):
        network(torch.rand(3, 3, 1, 1, 1))
    with pytest.raises(ZeroDivisionError), sliced(network, layers, [mask[0] for mask in masks]):
        _ = 1 / 0
    for name, module in network.named_modules():
        assert not module._forward_pre_hooks
        assert vars(module).keys() == state[name].keys()
        assert all(vars(module)[key] == value for key, value in state[name].items() if isinstance(value, int))
    with torch.no_grad():
        network(x)


def test_gradients_reach_the_masks(lively):
    network, layers, masks, x = case("resnet8", lively)
    soft = [mask.float().requires_grad_() for mask in masks]
    found = torch.autograd.grad(masked_logits(network, layers, soft, x).sum(), soft)
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_a_layer_without_a_kernel_is_refused(lively):
    network, layers, masks, x = case("resnet8", lively)
    masks[1][0] = False
    with pytest.raises(ValueError, match="keeps no kernel"):
        sliced_logits(network, layers, masks, x)


def test_multiply_adds_are_counted_once_each():
    assert multiply_adds(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.rand(2, 3, 16, 16)) == 3 * 8 * 9 * 256


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_replicas_share_their_parameters_and_answer_as_one_network_does(lively, threads):
    network, layers, masks, x = case("resnet8", lively)
    masks = [torch.cat([mask, mask.flip(0), mask[:1]]) for mask in masks]
    others = replicas_of(network)
    assert len(others) == threads - 1
    assert len({value.data_ptr() for one in (network, *others) for value in one.state_dict().values()}) == len(
        network.state_dict()
    )
    alone = sliced_logits(network, layers, masks, x)
    assert torch.allclose(sliced_logits(network, layers, masks, x, replicas=others), alone, atol=1e-5)
    assert torch.get_num_threads() == threads
    masks[0][2] = False
    with pytest.raises(ValueError, match="keeps no kernel"):
        sliced_logits(network, layers, masks, x, replicas=others)
    assert torch.get_num_threads() == threads
    with torch.no_grad():
        assert all(torch.equal(one(x), network(x)) for one in others)


def test_what_waits_is_not_begun_where_one_fails(threads):
    begun = []

    def work(item):
        begun.append(item)
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), runtime.single_threaded_workers(2) as pool:
        list(pool.map(work, range(10_000)))
    assert len(begun) < 10_000
    assert torch.get_num_threads() == threads
