"""SimCNN and ResCNN, their weak and their poor-fit variants: published counts, keys, shapes and initial values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.graph.hooks import convolutions
from deeppatch.zoo.architectures import ARCHITECTURES

IMAGE = (1, 3, 32, 32)
# parameters, kernels and multiply-adds with 10 classes
PUBLISHED = {"simcnn": (15_245_130, 4224, 313_725_952), "rescnn": (16_010_122, 4288, 431_166_464)}
SIMCNN = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
RESCNN = [64, 128, 128, 128, 256, 512, 512, 512, 512, 512, 512, 512]
# the published widths of the feature maps that each convolution reads
MAPS = {"simcnn": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2], "rescnn": [32, 32, 16, 16, 16, 8, 4, 4, 4, 2, 1, 1]}
WEAK = {"simcnn_weak": 10, "rescnn_weak": 10, "simcnn_svhn_weak": 5, "rescnn_svhn_weak": 5}


def build(name: str, classes: int = 10) -> nn.Module:
    torch.manual_seed(7)
    return ARCHITECTURES[name](classes).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_kernels_and_multiply_adds_are_the_published_ones(name):
    with torch.device("meta"):  # shapes without values
        network = build(name)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(IMAGE))
    found = (
        sum(parameter.numel() for parameter in network.parameters()),
        sum(conv.out_channels for conv in convolutions(network).values()),
        counter.get_total_flops() // 2,  # it counts a multiply-add as two
    )
    assert found == PUBLISHED[name]


@pytest.mark.parametrize(("name", "channels"), [("simcnn", SIMCNN), ("rescnn", RESCNN)])
def test_convolutions_and_maps_are_the_published_ones(name, channels):
    with torch.device("meta"):
        network, read = build(name), []
        convs = convolutions(network)
        for conv in convs.values():
            conv.register_forward_pre_hook(lambda _conv, given: read.append(given[0].shape[-1]))
        network(torch.empty(IMAGE))
    assert [conv.out_channels for conv in convs.values()] == channels
    assert all((conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1)) for conv in convs.values())
    assert all(conv.bias is not None for conv in convs.values())
    assert read == MAPS[name]


@pytest.mark.parametrize("variant", ["", "_poorfit", "_x0_25"])
def test_state_keys_are_those_of_the_published_checkpoints(variant):
    with torch.device("meta"):
        keys = {name: list(build(f"{name}{variant}").state_dict()) for name in PUBLISHED}
    layers = [*(f"conv_{number}" for number in range(13)), "fc_13", "fc_14", "fc_15"]
    assert keys["simcnn"] == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    layers = [*(f"conv_{number}.0" for number in range(12)), "classifier.2"]
    assert keys["rescnn"] == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.mark.parametrize(("name", "rates"), [("simcnn", [0.5]), ("rescnn", [0.4])])
def test_the_poor_fit_is_the_same_network_without_dropout(name, rates):
    with torch.device("meta"):
        usual, poor = build(name), build(f"{name}_poorfit")
    assert [module.p for module in usual.modules() if isinstance(module, nn.Dropout)] == rates
    assert not any(module.p for module in poor.modules() if isinstance(module, nn.Dropout))
    assert [p.shape for p in usual.parameters()] == [p.shape for p in poor.parameters()]


def test_narrow_variants_have_a_quarter_of_each_layer():
    with torch.device("meta"):
        assert [conv.out_channels for conv in convolutions(build("simcnn_x0_25")).values()] == [n // 4 for n in SIMCNN]
        assert [conv.out_channels for conv in convolutions(build("rescnn_x0_25")).values()] == [n // 4 for n in RESCNN]


# --- what they compute, written out


def plain_simcnn(network: nn.Module, x: Tensor) -> Tensor:
    state = network.state_dict()
    for number in range(13):
        x = F.relu(F.conv2d(x, state[f"conv_{number}.weight"], state[f"conv_{number}.bias"], padding=1))
        x = F.max_pool2d(x, 2) if number in (1, 3, 6, 9, 12) else x
    x = x.flatten(1)
    for number in (13, 14):
        x = F.relu(F.linear(x, state[f"fc_{number}.weight"], state[f"fc_{number}.bias"]))
    return F.linear(x, state["fc_15.weight"], state["fc_15.bias"])


def plain_rescnn(network: nn.Module, x: Tensor) -> Tensor:
    state, outs = network.state_dict(), []
    for number in range(12):
        x = F.relu(F.conv2d(x, state[f"conv_{number}.0.weight"], state[f"conv_{number}.0.bias"], padding=1))
        x = F.max_pool2d(x, 2) if number in (1, 4, 5, 8, 9) else x
        if number in (3, 7, 11):
            x = x + outs[number - 2]  # behind the ReLU, and no ReLU follows
        outs.append(x)
    return F.linear(x.flatten(1), state["classifier.2.weight"], state["classifier.2.bias"])


def plain_simcnn_weak(network: nn.Module, x: Tensor) -> Tensor:
    convs, head = list(convolutions(network).values()), list(network.modules())[-1]
    for conv in convs:
        padding = {3: 1, 5: 0}[conv.weight.shape[-1]]
        x = F.max_pool2d(F.relu(F.conv2d(x, conv.weight, conv.bias, padding=padding)), 2)
    return F.linear(x.flatten(1), head.weight, head.bias)


def plain_rescnn_weak(network: nn.Module, x: Tensor) -> Tensor:
    convs, head = list(convolutions(network).values()), list(network.modules())[-1]
    outs = []
    for number, conv in enumerate(convs):
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2))
        x = F.max_pool2d(x, 2) if number in (0, 3) else x
        x = x + outs[0] if number == 2 else x
        outs.append(x)
    x = F.max_pool2d(x, 2) if len(convs) == 3 else x
    return F.linear(x.flatten(1), head.weight, head.bias)


PLAIN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "simcnn_x0_25": plain_simcnn, "rescnn_x0_25": plain_rescnn, "simcnn_weak": plain_simcnn_weak,
    "simcnn_svhn_weak": plain_simcnn_weak, "rescnn_weak": plain_rescnn_weak, "rescnn_svhn_weak": plain_rescnn_weak,
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_logits_are_those_of_the_definition(name):
    network, x = build(name).double(), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), PLAIN[name](network, x), rtol=1e-12, atol=1e-12)


# --- weak networks

SHAPES = {
    "simcnn_weak": [(64, 3, 3, 3), *[(64, 64, 3, 3)] * 3, (10, 256)],
    "rescnn_weak": [(64, 3, 3, 3), *[(64, 64, 3, 3)] * 3, (10, 4096)],
    "simcnn_svhn_weak": [(8, 3, 5, 5), (8, 8, 5, 5), (5, 200)],
    "rescnn_svhn_weak": [(8, 3, 5, 5), (8, 8, 5, 5), (8, 8, 5, 5), (5, 512)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_weak_networks_have_the_published_shapes(name):
    network = build(name, WEAK[name])
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == SHAPES[name]
    assert all(module.p == 0.4 for module in network.modules() if isinstance(module, nn.Dropout))
    assert any(isinstance(module, nn.Dropout) for module in network.modules()) is (name == "rescnn_weak")


@pytest.mark.parametrize("name", [*PLAIN])
def test_no_layer_is_declared_and_never_used(name):
    """One published weak network has a convolution that nothing reads (specification, fault 13)."""
    network = build(name)
    network(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("name", ["simcnn", "simcnn_weak", "simcnn_svhn_weak"])
def test_simcnn_s_convolutions_start_as_published(name):
    for conv in convolutions(build(name)).values():
        deviation = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        count = conv.weight.numel()
        assert conv.weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))
        assert abs(conv.weight.mean().item()) < 5 * deviation / math.sqrt(count)
        assert conv.bias.count_nonzero() == 0
