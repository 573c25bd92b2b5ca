"""Training for modularity: the terms by their plain definition, the rising weights, resumption, and what it buys."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images, to_float
from deeppatch.errors import UserError
from deeppatch.modular.modularity_loss import (
    ModularityLoss,
    ModularityWeights,
    first_modular_epoch,
    measure_modularity,
    modularity_terms,
    train_for_modularity,
    usage_readers,
)
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe
from deeppatch.zoo.classifier import Classifier


class Small(nn.Module):
    """Two convolutions, the second read through a flattening of 2 by 2 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, 4, 3, stride=2)
        self.norm, self.head = nn.BatchNorm2d(5), nn.Linear(16, 3)

    def maps(self, x):
        one = torch.relu(self.norm(self.one(x)))
        return one, F.leaky_relu(self.two(one))

    def forward(self, x):
        return self.head(self.maps(x)[1].flatten(1))


@pytest.fixture
def model():
    torch.manual_seed(3)
    return Classifier(Small(), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def data():
    def images(count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 3
        pixels = torch.randint(0, 150, (count, 3, 12, 12), generator=generator)
        pixels[torch.arange(count), labels] += 60
        return Images(pixels.to(torch.uint8), labels)

    return Data(images(60, 1), images(30, 2), images(30, 3), ("a", "b", "c"), "colours")


def plain_terms(maps, labels):
    """The definition, image by image and pair by pair."""
    cohesion, coupling, compactness = [], [], []
    for layer in maps:
        usage = [[math.tanh(kernel.clamp(min=0).mean().item()) for kernel in image] for image in layer]
        same, different = [], []
        for i, j in itertools.combinations(range(len(usage)), 2):
            norms = [math.sqrt(sum(value**2 for value in usage[k])) for k in (i, j)]
            similarity = sum(a * b for a, b in zip(usage[i], usage[j], strict=True)) / (norms[0] * norms[1])
            (same if labels[i] == labels[j] else different).append(similarity)
        cohesion.append(1 - sum(same) / len(same))
        coupling.append(sum(different) / len(different))
        compactness.append(sum(map(sum, usage)) / (len(usage) * len(usage[0])))
    kernels = [layer.shape[1] for layer in maps]
    terms = (cohesion, coupling, compactness)
    return [sum(k * each for k, each in zip(kernels, values, strict=True)) / sum(kernels) for values in terms]


def test_the_terms_are_those_of_the_plain_definition(model, data):
    model.eval()
    pixels, labels = to_float(data.val.pixels), data.val.labels
    with torch.no_grad():
        maps = model.network.maps(model.normalize(pixels))
        entropy = F.cross_entropy(model(pixels), labels).item()
    expected = plain_terms(maps, labels.tolist())
    measured = measure_modularity(model, data.val)
    assert list(measured) == ["cohesion", "coupling", "compactness"]
    assert list(measured.values()) == pytest.approx(expected, rel=1e-4)
    loss = ModularityLoss(model, data.example, ModularityWeights(2.0, 3.0, 5.0), steps=20)
    extra = 2 * expected[0] + 3 * expected[1] + 5 * expected[2]
    found = [loss(model, (pixels, labels)).item() for _ in range(10)]
    shares = (0, 0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1)
    assert found == pytest.approx([entropy + share * extra for share in shares], rel=1e-4), "they rise"
    assert usage_readers(model, data.example) == [("two", 1), ("head", 4)]


def test_a_batch_of_one_class_or_of_single_images_has_no_pairs():
    usage = [torch.rand(4, 6)]
    assert modularity_terms(usage, torch.zeros(4, dtype=torch.long))["coupling"] == 0
    assert modularity_terms(usage, torch.arange(4))["cohesion"] == 0


class Killed(Exception):
    pass


def test_a_killed_training_ends_with_the_same_weights(model, data, tmp_path):
    recipe = Recipe(epochs=4, lr=0.05, batch_size=20)

    def trained(checkpoint):
        loss = ModularityLoss(model, data.example, steps=recipe.steps(60))
        return train_classifier(model, data, recipe, loss=loss, carried=loss, checkpoint=checkpoint)[0].state_dict()

    whole = trained(None)
    checkpoint = Checkpoint(tmp_path / "c.pt", {}, resume=False)
    save, saves = checkpoint.save, []

    def killing(state):
        save(state)
        saves.append(1)
        if len(saves) == 2:
            raise Killed

    checkpoint.save = killing
    with pytest.raises(Killed):
        trained(checkpoint)
    again = trained(Checkpoint(tmp_path / "c.pt", {}, resume=True))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_network_trained_for_modularity_uses_fewer_kernels_and_its_classes_other_ones(model, data):
    recipe = Recipe(epochs=25, lr=0.05, batch_size=20)
    before = copy.deepcopy(model.state_dict())
    plain, _ = train_classifier(model, data, recipe)
    modular, history = train_for_modularity(model, data, recipe)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    one, two = measure_modularity(plain, data.test), measure_modularity(modular, data.test)
    assert two["coupling"] < one["coupling"]
    assert two["compactness"] < one["compactness"]
    assert history.best >= first_modular_epoch(25) == 10
    assert history.accuracy[history.best] > 0.9


def test_weights_of_zero_are_plain_training(model, data):
    recipe = Recipe(epochs=2, lr=0.05, batch_size=20)
    plain, _ = train_classifier(model, data, recipe)
    same, _ = train_for_modularity(model, data, recipe, weights=ModularityWeights(0, 0, 0))
    pixels = to_float(data.test.pixels)
    torch.testing.assert_close(same(pixels), plain(pixels))


def test_a_network_that_cannot_be_split_is_refused(data):
    with pytest.raises(UserError, match="cannot be split"):
        train_for_modularity(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), data)
