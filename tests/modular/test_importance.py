from __future__ import annotations

import logging

import pytest
import torch

from deeppatch.graph.folding import folded
from deeppatch.modular import sensitivity
from deeppatch.modular.extract import extract
from deeppatch.modular.importance import importances, orders
from deeppatch.modular.layers import find_layers
from deeppatch.zoo.architectures import ARCHITECTURES


@pytest.fixture
def case(lively):
    torch.manual_seed(6)
    network = lively(ARCHITECTURES["resnet8"](4))
    x, labels = torch.rand(40, 3, 32, 32) * torch.rand(40, 3, 1, 1), torch.arange(40) % 4
    with torch.no_grad():  # sure of some images, and of different classes
        network.fc.bias -= network(x).mean(0)
        scale = 5 / network(x).std()
        network.fc.weight *= scale
        network.fc.bias *= scale
    return network, find_layers(network, x[:2]), x, labels


def test_importance_is_the_mean_norm_over_sure_images_of_the_class(case):
    network, layers, x, labels = case
    with torch.no_grad():
        probability = network(x).softmax(1)
        labels = probability.argmax(1)  # the images of a class of which the network is sure
        sure = (labels == labels[0]) & (probability[:, labels[0]] >= 0.9)
        assert 0 < sure.sum() < 40
        maps = []
        handle = network.get_submodule("layer2.0.conv2").register_forward_pre_hook(lambda _m, i: maps.append(i[0]))
        network(x)
        handle.remove()
    found = importances(network, layers, x, labels, 4)
    place = next(place for place, layer in enumerate(layers) if list(layer.readers) == ["layer2.0.conv2"])
    assert torch.allclose(found[place][labels[0]], maps[0][sure].abs().sum((2, 3)).mean(0), rtol=1e-4)
    assert orders(found, 0)[place].tolist() == found[place][0].argsort(descending=True, stable=True).tolist()


def test_where_no_image_is_sure_the_likeliest_count_and_that_is_logged(case, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    network, layers, x, labels = case
    network.fc.weight.data.zero_()
    network.fc.bias.data.zero_()
    found = importances(network, layers, x, labels, 4)
    assert all(values.isfinite().all() for values in found)
    assert caplog.text.count("likeliest are taken") == 4


def test_sensitivity_is_that_of_composed_modules_one_layer_cut(case):
    network, layers, x, labels = case
    quick = folded(network)
    layers = find_layers(quick, x[:2])
    importance = importances(quick, layers, x, labels, 4)
    table = sensitivity.measure(quick, layers, importance, x, labels, batch_size=7)
    for place, layer in enumerate(layers):
        for column, ratio in list(enumerate(sensitivity.RATIOS))[::3]:
            scores = []
            for number in range(4):
                kept = [torch.ones(each.kernels, dtype=torch.bool) for each in layers]
                kept[place] = torch.zeros(layer.kernels, dtype=torch.bool)
                kept[place][orders(importance, number)[place][: int(ratio * layer.kernels)].copy()] = True
                with torch.no_grad():
                    scores.append(extract(quick, layers, kept)(x)[:, number])
            right = (torch.stack(scores, 1).argmax(1) == labels).double().mean()
            assert table[place, column].item() == pytest.approx(right.item(), abs=0.026)  # a tie at most


def test_a_table_that_was_interrupted_is_gone_on_with(case):
    network, layers, x, labels = case
    quick = folded(network)
    importance = importances(quick, layers, x, labels, 4)
    saved = []
    whole = sensitivity.measure(quick, layers, importance, x, labels, save=saved.append)
    assert [len(table) for table in saved] == list(range(1, len(layers) + 1))
    again = []
    assert torch.equal(
        sensitivity.measure(quick, layers, importance, x, labels, save=again.append, table=saved[2]), whole
    )
    assert len(again) == len(layers) - 3


def test_sensitive_layers_fall_by_more_than_the_limit():
    table = torch.tensor([[0.5] * 5 + [0.9] * 5, [0.86] * 9 + [0.9]])
    assert sensitivity.sensitive(table, 0.05, 0.5) == [0]
    assert sensitivity.sensitive(table, 0.03, 0.5) == [0, 1]
    assert sensitivity.sensitive(table, 0.05, 0.7) == []
