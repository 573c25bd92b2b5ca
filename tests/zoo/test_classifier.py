from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.errors import UserError
from deeppatch.zoo.classifier import Classifier, Normalize

MEAN, STD = [0.1, 0.5, 0.9], [0.2, 0.25, 0.4]


def test_normalize_subtracts_and_divides_per_channel():
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    before = pixels.clone()
    found = Normalize(MEAN, STD)(pixels)
    for channel in range(3):
        assert torch.allclose(found[:, channel], (before[:, channel] - MEAN[channel]) / STD[channel])
    assert torch.equal(pixels, before)


def test_the_constants_are_saved_with_the_model_and_are_not_trained():
    model = Classifier(nn.Flatten(), MEAN, STD)
    assert list(model.parameters()) == []
    assert torch.equal(model.state_dict()["normalize.mean"].flatten(), torch.tensor(MEAN))
    assert torch.equal(model.state_dict()["normalize.std"].flatten(), torch.tensor(STD))


def test_the_constants_move_with_the_model():
    model = Classifier(nn.Flatten(), MEAN, STD).double()
    assert model(torch.rand(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_a_loaded_state_brings_its_constants():
    saved = Classifier(nn.Flatten(), MEAN, STD).state_dict()
    model = Classifier(nn.Flatten(), [0.0] * 3, [1.0] * 3)
    pixels = torch.rand(1, 3, 2, 2)
    assert torch.equal(model(pixels), pixels.flatten(1))
    model.load_state_dict(saved)
    assert torch.equal(model(pixels), Normalize(MEAN, STD)(pixels).flatten(1))


def test_the_network_reads_normalised_pixels_and_keeps_its_keys(tiny):
    pixels = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(tiny(pixels), tiny.network((pixels - tiny.normalize.mean) / tiny.normalize.std))
    inner = {f"network.{key}" for key in tiny.network.state_dict()}
    assert tiny.state_dict().keys() == inner | {"normalize.mean", "normalize.std"}


def test_without_constants_nothing_is_normalised():
    pixels = torch.rand(2, 3, 4, 5)
    model = Classifier(nn.Identity())
    assert torch.equal(model(pixels), pixels)
    assert model.classes is None
    assert Classifier(nn.Identity(), classes=["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.2, 0, 0.2)), ((float("nan"),) * 3, (1.0,) * 3), ((0.5,) * 5, (1.0,) * 5)]
)
def test_constants_that_cannot_be_are_refused(mean, std):
    with pytest.raises(UserError, match="give (finite numbers, std above 0|one number for each of 3 channels)"):
        Classifier(nn.Identity(), mean, std)
