"""Convolutions by tiles answer as convolutions do, and modules by them as modules do."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from deeppatch.graph.folding import folded
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import masked_logits, sliced_logits
from deeppatch.modular.winograd import MIN_CHANNELS, WinogradConv2d, _calls, optimize_for_cpu, winograd_conv2d
from deeppatch.zoo.architectures import ARCHITECTURES


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (4, 4), (8, 8), (7, 5), (3, 9)])
def test_tiles_of_either_size_give_the_convolution_at_every_height_and_width(size, height, width):
    x, weight, bias = torch.randn(3, 20, height, width), torch.randn(7, 20, 3, 3), torch.randn(7)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = winograd_conv2d(x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout), bias, size)
        torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(winograd_conv2d(x, weight, None), F.conv2d(x, weight, padding=1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["simcnn_x0_25", "rescnn_x0_25", "resnet20"])
def test_modules_of_a_quickened_network_answer_as_with_masks(name, monkeypatch):
    monkeypatch.setattr("deeppatch.modular.winograd.MIN_CHANNELS", 8)
    network = ARCHITECTURES[name](10).eval().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    layers = find_layers(network, x[:2])
    masks = [torch.rand(3, layer.kernels) < 0.7 for layer in layers]
    quick = optimize_for_cpu(network)
    assert any(isinstance(module, WinogradConv2d) for module in quick.modules())
    assert not any(isinstance(module, WinogradConv2d) for module in network.modules())
    found, expected = sliced_logits(quick, layers, masks, x), masked_logits(network, layers, masks, x)
    assert (found - expected).abs().max() < 0.02 * expected.std(1).mean(), "images differ by far more than rounding"


def test_narrow_convolutions_run_as_they_are_and_others_are_left_alone():
    conv = nn.Conv2d(MIN_CHANNELS - 1, 5, 3, padding=1)
    x = torch.randn(2, MIN_CHANNELS - 1, 4, 4)
    assert torch.equal(WinogradConv2d.from_conv(conv)(x), conv(x))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 5, 1, 1),
                            nn.Conv2d(4, 4, 3, 1, 1, 2), nn.Conv2d(4, 4, 3, padding=1, groups=2),
                            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))  # fmt: skip
    assert not any(isinstance(module, WinogradConv2d) for module in optimize_for_cpu(network).modules())


class Sizes(fx.Interpreter):
    """Notes how much each ReLU reads."""

    def run_node(self, node):
        if _calls(self.module, node, F.relu, nn.ReLU):
            self.read = [*getattr(self, "read", []), self.env[node.args[0]].numel()]
        return super().run_node(node)


@pytest.mark.parametrize(("name", "pools"), [("simcnn_x0_125", 5), ("vgg13_bn", 5), ("resnet8", 0)])
def test_a_traced_network_pools_before_its_relus_and_answers_the_same(name, pools, monkeypatch):
    monkeypatch.setattr("deeppatch.modular.winograd.MIN_CHANNELS", 10**6)
    network = folded(ARCHITECTURES[name](10).eval())
    x = torch.randn(4, 3, 32, 32)
    whole, quick = Sizes(network), Sizes(optimize_for_cpu(network))
    assert torch.equal(quick.run(x), whole.run(x))
    ratios = [a / b for a, b in zip(whole.read, quick.read, strict=True)]
    assert (ratios.count(4), ratios.count(1)) == (pools, len(ratios) - pools)
