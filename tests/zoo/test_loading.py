"""Networks of the zoo as classifiers, with published, given and fresh weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights

from deeppatch.errors import UserError
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.entries import CLASSES, ENTRIES
from deeppatch.zoo.loading import load_classifier
from deeppatch.zoo.names import ARCHITECTURE_NAMES


def test_fresh_weights_depend_on_the_seed_only():
    before = torch.get_rng_state()
    first = load_classifier("resnet8", 7, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = load_classifier("resnet8", 7, seed=3), load_classifier("resnet8", 7, seed=4)
    pixels = torch.rand(2, 3, 20, 28)
    assert torch.equal(first(pixels), again(pixels))
    assert not torch.equal(first(pixels), other(pixels))
    assert first(pixels).shape == (2, 7)
    assert not first.training
    assert (first.normalize.mean == 0).all()
    assert (first.normalize.std == 1).all()


def test_given_weights_bring_their_normalisation_unless_another_is_given(tmp_path):
    left = load_classifier("resnet8", 5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_file(left.state_dict(), tmp_path / "weights.safetensors")
    torch.save(left.network.state_dict(), tmp_path / "bare.pt")
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_classifier("resnet8", 5, tmp_path / "weights.safetensors")(pixels), left(pixels))
    bare = load_classifier("resnet8", 5, str(tmp_path / "bare.pt"))
    assert torch.equal(bare(pixels), left.network(pixels))
    other = load_classifier("resnet8", 5, tmp_path / "weights.safetensors", mean=(0.5,) * 3)
    assert (other.normalize.mean == 0.5).all()
    torch.testing.assert_close(other.normalize.std, left.normalize.std)


def test_the_name_of_a_data_set_stands_for_its_published_weights(tmp_path, monkeypatch):
    entry = ENTRIES["cifar100", "resnet20"]
    torch.save(ARCHITECTURES["resnet20"](100).state_dict(), tmp_path / "published.pt")
    monkeypatch.setattr(weights, "fetch", lambda url: tmp_path / "published.pt" if url == entry.url else None)
    model = load_classifier("resnet20", "cifar100")
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 100)
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(entry.mean))
    torch.testing.assert_close(model.normalize.std.flatten(), torch.tensor(entry.std))


def test_what_there_is_not_is_named():
    with pytest.raises(UserError, match=r"no network resnt8 in the zoo \(did you mean resnet8\?\)"):
        load_classifier("resnt8")
    with pytest.raises(UserError, match="no weights of resnet8 on cifar10 are published"):
        load_classifier("resnet8", "cifar10")
    with pytest.raises(UserError, match="classes='cifar'"):
        load_classifier("resnet20", "cifar")
    with pytest.raises(UserError, match="no such file"):
        load_classifier("resnet8", 10, "nowhere.pt")


def test_constants_are_those_of_the_registries():
    assert tuple(ARCHITECTURES) == ARCHITECTURE_NAMES
    assert ENTRIES["imagenet", "resnet50"].url == ResNet50_Weights.IMAGENET1K_V1.url
    assert {dataset for dataset, _network in ENTRIES} <= CLASSES.keys()
