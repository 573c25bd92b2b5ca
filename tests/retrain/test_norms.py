"""Training of the normalisations only, and statistics without training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.data import views
from deeppatch.data.epochs import Passes
from deeppatch.errors import UserError
from deeppatch.graph.statistics import STATISTICS, reestimate
from deeppatch.retrain.finetune import finetune
from deeppatch.retrain.norms import NORMS, norms, statistics_view
from deeppatch.zoo.architectures import ARCHITECTURES

TRAINING = {"epochs": 2, "lr": 0.05, "batch_size": 20}
BUFFERS = 2 * (2 * 8 * 4 + 8)  # two normalisations of eight channels: mean and variance, and a count of int64


def test_scale_shift_and_statistics_move_and_nothing_else(tiny, data, blur):
    found = norms(tiny, data, blur, **TRAINING)
    before = tiny.state_dict()
    moved = {name for name, value in found.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"network.{norm}.{name}" for norm in ("bn1", "bn2") for name in ("weight", "bias", *STATISTICS)}
    assert (found.passes, found.facts) == (Passes(120, 2 * 7 * 60), {"trained_parameters": 32})
    assert found.stored_bytes == 32 * 4 + BUFFERS
    assert len(found.history.loss) == 2


def test_with_normalisations_as_all_parameters_it_is_finetune(data, blur, content):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.GroupNorm(3, 3),
        nn.MaxPool2d(5),
        nn.Flatten(),
        nn.LayerNorm(12),
    )
    trained = [method(network, data, blur, **TRAINING) for method in (norms, finetune)]
    assert content(trained[0]) == content(trained[1])
    assert trained[0].history == trained[1].history
    assert content(trained[0]) != content(network)


def test_passes_of_an_epoch_are_an_epoch(tiny, data, blur, content):
    whole, cut = (
        norms(tiny, data, blur, lr=0.05, batch_size=20, **budget) for budget in ({"epochs": 1}, {"passes": 60})
    )
    assert content(whole) == content(cut)
    fewer = norms(tiny, data, blur, lr=0.05, batch_size=20, passes=40)
    assert (fewer.passes, content(fewer) == content(whole)) == (Passes(40, 420), False)


def test_without_epochs_statistics_are_those_of_degraded_images(tiny, data, blur, content, monkeypatch):
    monkeypatch.setattr("deeppatch.retrain.norms.BATCH", 15)
    monkeypatch.setattr("deeppatch.retrain.norms.IMAGES", 40)
    found = norms(tiny, data, blur, epochs=0)
    view = views.random_level_view(data.train, blur, 15, 2021)
    assert (view.levels > 0).all()
    read = list(statistics_view(view, 2021))
    assert [len(labels) for _, labels in read] == [15, 15], "of one size"
    assert content(found) == content(reestimate(tiny, read)) != content(tiny)
    assert (found.history, found.passes, found.stored_bytes) == (None, Passes(forward=30), BUFFERS)
    assert found.facts == {"trained_parameters": 0, "statistics_images": 30}
    assert content(norms(tiny, data, blur, epochs=0)) == content(found)
    assert content(norms(tiny, data, blur, epochs=0, seed=1)) != content(found)


def test_resnet32a_has_half_a_percent_of_its_parameters_in_normalisations():
    network = ARCHITECTURES["resnet32a"](10)
    inside = [each for module in network.modules() if isinstance(module, NORMS) for each in module.parameters()]
    assert sum(each.numel() for each in inside) == 2272
    assert sum(each.numel() for each in network.parameters()) == 464_154


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_network_without_normalisations_is_refused(data, blur, epochs):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match=r"norms: the model has none of the parameters|no batch normalisation"):
        norms(network, data, blur, epochs=epochs)
