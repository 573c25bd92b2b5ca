"""Training kernels through modules: the same scores and gradients as of masked networks, what it buys, resumption."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import StaleArtifact
from deeppatch.metrics import accuracy
from deeppatch.modular.heads import Heads, Scales
from deeppatch.modular.layers import layers_to_split
from deeppatch.modular.masking import masked_logits
from deeppatch.modular.modules import Modules
from deeppatch.modular.tuning import SharedModules, tune_modules
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe
from deeppatch.training import accuracy_on
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier


def split(model: Classifier, x: torch.Tensor, share: float = 0.4, heads: nn.Module | None = None) -> Modules:
    """Modules of a random share of all kernels, one of each layer at least."""
    kept = {}
    for layer in layers_to_split(model.network, model.normalize(x)):
        kept[layer.name] = torch.rand(4, layer.kernels, generator=torch.Generator().manual_seed(5)) < share
        kept[layer.name][:, 0] = True
    return Modules(state_digest(model.state_dict()), kept, heads)


@pytest.fixture(scope="module")
def data():
    def images(count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 120, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for quarter in range(4):
            pixels[labels == quarter, :, 8 * quarter : 8 * quarter + 8] += 100
        return Images(pixels, labels)

    return Data(images(200, 1), images(80, 2), images(80, 3), ("a", "b", "c", "d"), crop=False, mirror=False)


@pytest.fixture(scope="module")
def strong(data):
    torch.manual_seed(3)
    model = Classifier(ARCHITECTURES["resnet8"](4), (0.5,) * 3, (0.25,) * 3)
    return train_classifier(model, data, Recipe(epochs=6, lr=0.05, batch_size=20))[0]


@pytest.mark.parametrize("name", ["resnet8", "simcnn_x0_25", "simcnn_bn", "incecnn"])
def test_scores_are_those_of_the_modules_and_gradients_those_of_masked_networks(name):
    torch.manual_seed(1)
    model = Classifier(ARCHITECTURES[name](4), (0.5,) * 3, (0.25,) * 3).eval()
    x = torch.rand(3, 3, 32, 32)
    modules, layers = split(model, x), layers_to_split(model.network, model.normalize(x))
    scores = SharedModules(model, modules, layers)(x)
    torch.testing.assert_close(scores, modules.composed(model, x)(x), rtol=0, atol=1e-6)
    found = torch.autograd.grad(scores.square().sum(), list(model.parameters()), allow_unused=True)
    masks = [modules.kept[layer.name].float() for layer in layers]
    masked = masked_logits(model.network, layers, masks, model.normalize(x)).permute(1, 0, 2).diagonal(dim1=1, dim2=2)
    plain = torch.autograd.grad(masked.square().sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("heads", [None, Scales(4), Heads(4, 4)])
def test_modules_become_more_accurate_and_keep_the_same_kernels(strong, data, heads):
    before = copy.deepcopy(strong.state_dict())
    modules = split(strong, data.example, 0.5, heads)
    tuned, found, table = tune_modules(strong, modules, data, epochs=3, lr=0.02, batch_size=20)
    assert table["epoch"].tolist() == [0, 1, 2, 3]
    if isinstance(heads, Heads):  # which are random here, and begin slowly
        assert table["loss"][3] < table["loss"][1]
    else:
        assert table["holdout_accuracy"][1:].max() > table["holdout_accuracy"][0] + 0.5
    composed = found.composed(tuned, data.example)
    measured = accuracy_on(data.val).measure(composed)
    assert measured == pytest.approx(table["holdout_accuracy"][1:].max())
    assert found.base == state_digest(tuned.state_dict()) != modules.base
    assert all(torch.equal(found.kept[name], mask) for name, mask in modules.kept.items())
    assert type(found.heads) is type(heads)
    pixels = data.val.pixels / 255
    with torch.no_grad():
        assert (
            accuracy(tuned(pixels).argmax(1), data.val.labels)
            > accuracy(strong(pixels).argmax(1), data.val.labels) - 0.1
        )
    assert all(torch.equal(value, before[name]) for name, value in strong.state_dict().items())
    for name, value in tuned.state_dict().items():
        assert "running" not in name or torch.equal(value, before[name]), "statistics stay"


def test_a_training_that_is_interrupted_ends_with_the_same_bytes(strong, data, tmp_path, monkeypatch):
    modules = split(strong, data.example, 0.5, Scales(4))
    settings = {"epochs": 3, "lr": 0.01, "batch_size": 20}
    whole = tune_modules(strong, modules, data, **settings)
    saves = []

    def interrupted(self, state, _save=Checkpoint.save):
        _save(self, state)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune_modules(strong, modules, data, **settings, checkpoint=Checkpoint(tmp_path / "c.pt", {}, resume=False))
    monkeypatch.undo()
    tuned, found, table = tune_modules(
        strong, modules, data, **settings, checkpoint=Checkpoint(tmp_path / "c.pt", {}, resume=True)
    )
    assert found.base == whole[1].base
    assert found.to_bytes() == whole[1].to_bytes()
    assert table.equals(whole[2])


def test_modules_of_another_network_are_refused(strong, data):
    other = copy.deepcopy(strong)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(StaleArtifact, match="other base weights"):
        tune_modules(other, split(strong, data.example), data, epochs=1)
