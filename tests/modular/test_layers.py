from __future__ import annotations

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F

from deeppatch.errors import UserError
from deeppatch.modular.layers import find_layers, layers_to_split
from deeppatch.zoo.architectures import ARCHITECTURES

EXAMPLE = torch.rand(2, 3, 32, 32)


def test_simcnn_has_a_layer_for_each_convolution():
    layers = find_layers(ARCHITECTURES["simcnn_x0_125"](10).eval(), EXAMPLE)
    assert [layer.name for layer in layers] == [f"conv_{number}" for number in range(13)]
    assert [list(layer.readers) for layer in layers] == [[f"conv_{number}"] for number in range(1, 13)] + [["fc_13"]]


def test_the_ties_of_rescnn_are_the_published_ones():
    layers = find_layers(ARCHITECTURES["rescnn_x0_25"](10).eval(), EXAMPLE)
    tied = [layer.convs for layer in layers if len(layer.convs) > 1]
    assert tied == [["conv_1.0", "conv_3.0"], ["conv_5.0", "conv_7.0"], ["conv_9.0", "conv_11.0"]]
    assert len(layers) == 9
    readers = {name for layer in layers for name in layer.readers}
    assert readers == {*(f"conv_{number}.0" for number in range(1, 12)), "classifier.2"}


def test_what_is_added_in_a_resnet_is_tied_over_the_whole_stage():
    layers = find_layers(ARCHITECTURES["resnet20"](10).eval(), EXAMPLE)
    assert layers[0].convs == ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]
    assert layers[0].followers == ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"]
    assert sum(layer.kernels * len(layer.convs) for layer in layers) == 784


@pytest.mark.parametrize(
    "name", ["simcnn_x0_125", "rescnn_x0_25", "resnet8", "resnet20", "resnet20a", "vgg13_bn", "mobilenetv2_x0_5"]
)
def test_layers_are_the_groups_that_torch_pruning_finds(name):
    """Its dependency graph follows gradients, ours the traced calls: what goes with a kernel must be the same."""
    network = ARCHITECTURES[name](10).eval()
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=EXAMPLE)
    names = {module: path for path, module in network.named_modules()}
    for layer in find_layers(network, EXAMPLE):
        found = {"convs": set(), "followers": set(), "readers": set()}
        conv = network.get_submodule(layer.convs[0])
        for dependency, _ in graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=[0]):
            module, cut = dependency.target.module, dependency.handler.__name__
            if module in names:
                follows = isinstance(module, nn.BatchNorm2d) or getattr(module, "groups", 1) > 1
                found["followers" if follows else "convs" if "out" in cut else "readers"].add(names[module])
        assert found == {"convs": {*layer.convs}, "followers": {*layer.followers}, "readers": {*layer.readers}}


def test_a_depthwise_convolution_follows_and_a_flattened_map_makes_several_inputs():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28 * 28, 5)
    )
    (layer,) = find_layers(network.eval(), EXAMPLE)
    assert (layer.convs, layer.followers, layer.readers) == (["0"], ["1"], {"4": 28 * 28})


@pytest.mark.parametrize(("name", "blocks"), [("resnet20a", 3), ("resnet32a", 5)])
def test_beside_parameter_free_shortcuts_the_inner_convolutions_of_blocks_are_split(name, blocks):
    layers = find_layers(ARCHITECTURES[name](10).eval(), EXAMPLE)
    places = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(blocks)]
    assert [layer.convs for layer in layers] == [[f"{place}.conv1"] for place in places]
    assert [layer.followers for layer in layers] == [[f"{place}.bn1"] for place in places]
    assert [layer.readers for layer in layers] == [{f"{place}.conv2": 1} for place in places]
    assert [layer.kernels for layer in layers] == [width for width in (16, 32, 64) for _ in range(blocks)]


class Between(nn.Module):
    """Two convolutions, and a function of the maps between them."""

    def __init__(self, function, inputs=4) -> None:
        super().__init__()
        self.function = function
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(inputs, 6, 3)

    def forward(self, x):
        return self.two(self.function(self.one(x))).mean((2, 3))


@pytest.mark.parametrize("function", [lambda x: x[:, :, 1:, ::2], lambda x: F.pad(x, (1, 1, 2, 0))])
def test_what_is_cropped_or_padded_in_height_and_width_alone_is_split(function):
    assert [layer.name for layer in find_layers(Between(function).eval(), EXAMPLE)] == ["one", "two"]


def test_what_is_padded_with_channels_is_in_no_layer():
    padded = Between(lambda x: F.pad(x, pad=(0, 0, 0, 0, 1, 1)), inputs=6)
    assert [layer.name for layer in find_layers(padded.eval(), EXAMPLE)] == ["two"]


@pytest.mark.parametrize("function", [lambda x: x[:, ::2].repeat(1, 2, 1, 1), lambda x: x[:, [3, 2, 1, 0]]])
def test_channels_that_are_picked_are_refused(function):
    with pytest.raises(UserError, match="cannot be split: getitem mixes channels"):
        find_layers(Between(function).eval(), EXAMPLE)


def test_a_network_that_mixes_channels_is_refused_in_one_line():
    with pytest.raises(UserError, match="cannot be split") as refused:
        find_layers(ARCHITECTURES["shufflenetv2_x1_0"](10).eval(), EXAMPLE)
    assert "\n" not in str(refused.value)


def test_what_is_added_to_the_input_is_in_no_layer():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            return self.two(self.one(x) + x).mean((2, 3))

    assert [layer.name for layer in find_layers(Added().eval(), EXAMPLE)] == ["two"]


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten())],
    ids=["no convolution", "its outputs are the logits"],
)
def test_a_network_without_kernels_to_drop_is_refused(network):
    with pytest.raises(UserError, match="cannot be split: it has no convolution whose kernels can be dropped"):
        layers_to_split(network.eval(), EXAMPLE)


def test_a_convolution_whose_outputs_are_the_logits_keeps_its_kernels():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [(layer.convs, layer.readers) for layer in layers_to_split(network.eval(), EXAMPLE)] == [(["0"], {"1": 1})]


class Sized(nn.Module):
    """Reads the size of the images, which mixes no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        batch, _, height, width = x.shape
        torch._assert(height == width, "square")
        return self.fc(self.conv(x).mean((2, 3)))


def test_reading_the_size_of_images_mixes_no_channels():
    (layer,) = find_layers(Sized().eval(), EXAMPLE)
    assert (layer.convs, layer.readers) == (["conv"], {"fc": 1})
