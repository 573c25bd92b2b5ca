"""Training from scratch, and what common normalisation constants explain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from deeppatch.artifacts import Checkpoint
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images, to_float
from deeppatch.pretraining import classifier
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.normalisation import check_normalisation, of_training_images
from deeppatch.pretraining.recipes import RECIPES, Recipe
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS
from deeppatch.zoo.normalisation import OF_TRAINING_IMAGES


@pytest.fixture
def data() -> Data:
    """Images of 20x28 pixels in two classes that differ in brightness."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(50) % 2
    pixels = (torch.rand(50, 3, 20, 28, generator=draw) + labels.view(-1, 1, 1, 1)) / 2
    return Data.of((pixels[:40], labels[:40]), (pixels[40:], labels[40:]))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.mark.parametrize("size", [1, 7])
def test_a_copy_is_trained_and_learns(network, data, size):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    trained, history = train_classifier(network, data, Recipe(lr=0.1, epochs=6, batch_size=size))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not trained.training
    assert len(history.loss) == 6
    assert max(history.accuracy) == 1
    again, _history = train_classifier(network, data, Recipe(lr=0.1, epochs=6, batch_size=size))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in trained.state_dict().items())


def test_an_interrupted_training_ends_the_same(network, data, tmp_path):
    recipe = Recipe(lr=0.1, epochs=4, batch_size=7)
    whole, _history = train_classifier(network, data, recipe)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)
    fit = classifier.fit

    def half(model, epochs, *given, **options):
        return fit(model, epochs[:2], *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "fit", half)
        train_classifier(network, data, recipe, checkpoint=checkpoint)
    resumed, history = train_classifier(network, data, recipe, checkpoint=checkpoint)
    assert len(history.loss) == 4
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(("crop", "mirror"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("augment", [True, False])
def test_images_are_cropped_and_mirrored_where_data_and_recipe_allow_it(
    network, data, monkeypatch, crop, mirror, augment
):
    seen: list[views.Shuffled] = []

    def stop(_model, epochs, *_given, **_options):
        seen.extend(epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(network, replace(data, crop=crop, mirror=mirror), Recipe(epochs=2, augment=augment), seed=9)
    assert [(each.seed, each.epoch, each.augment, each.mirror) for each in seen] == [
        (9, 0, crop and augment, mirror), (9, 1, crop and augment, mirror)
    ]  # fmt: skip


def test_the_recipes_have_the_published_rates():
    assert {name: each.milestones for name, each in RECIPES.items()} == {
        "default": None, "strong": (0.3, 0.6), "weak": (), "poorfit": (), "hybrid": (101 / 200, 151 / 200),
    }  # fmt: skip
    assert [name for name, each in RECIPES.items() if each.underfitted] == ["poorfit"]
    assert [name for name, each in RECIPES.items() if not each.augment] == ["poorfit"]


class Sharp(nn.Module):
    """Is correct only where it gets pixels normalised by one mean."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean), requires_grad=False)

    def forward(self, normalised):
        distance = (normalised.mean((1, 2, 3)) - self.mean).abs()
        return torch.stack([1 - 20 * distance, 20 * distance - 1], 1)


def test_constants_that_explain_a_low_accuracy_are_found():
    val = Images(torch.full((20, 3, 8, 8), 0.6), torch.zeros(20, dtype=torch.long))
    mean, std = COMMON_STATS["half"]
    right = Classifier(nn.Identity(), mean, std)(val.pixels).mean().item()
    model = Classifier(Sharp(right))
    assert check_normalisation(model, val, measured=92.0, published=93.0, images=20) is None
    check = check_normalisation(model, val, measured=0.0, published=93.0, images=1000, batch_size=7)
    assert (check.best, check.explains, check.published_percent) == ("half", True, 93.0)
    assert check.val["half"]["accuracy_percent"] == 100
    assert check.val.keys() == COMMON_STATS.keys()
    lost = check_normalisation(Classifier(Sharp(40.0)), val, measured=0.0, published=93.0, images=1000)
    assert not lost.explains


def test_normalisation_is_that_of_the_channels(data):
    found = of_training_images(data.train)
    mean, std = found.mean, found.std
    assert found.origin == OF_TRAINING_IMAGES
    pixels = to_float(data.train.pixels)
    for channel in range(3):
        assert mean[channel] == pytest.approx(pixels[:, channel].mean().item())
        assert std[channel] == pytest.approx(pixels[:, channel].std().item())
