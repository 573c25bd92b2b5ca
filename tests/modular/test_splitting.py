"""Splitting through the API: one's own network and image size; what each search reads; repeatability; mistakes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.splits import halves
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.graph.hooks import hooked_before
from deeppatch.metrics import accuracy
from deeppatch.metrics.logit_scaling import scales_and_biases
from deeppatch.modular import genetic_search, names, splitting
from deeppatch.modular.analysis import analyse
from deeppatch.modular.genetic import PopulationSearch
from deeppatch.modular.genetic_search import GeneticSearch, composed_accuracy
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.heads import Scales
from deeppatch.modular.joins import JOINS
from deeppatch.modular.masking import masked_logits
from deeppatch.modular.modules import Modules
from deeppatch.modular.presets import PRESETS, Preset
from deeppatch.modular.splitting import METHODS, search, split_into_modules
from deeppatch.modular.weak_networks import FITS
from deeppatch.training import adam, fit, predict

CLASSES = ("red", "green", "blue")


def images(count: int, seed: int) -> Images:
    """Noise of 20 by 14 pixels in which the class's own channel is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 150, (count, 3, 20, 14), generator=generator)
    pixels[torch.arange(count), labels] += 30
    return Images(pixels.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(images(120, 1), images(60, 2), images(60, 3), CLASSES, "colours")


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(data) -> nn.Module:
    """A network of one's own that tells the classes apart; tests change nothing."""
    made = network()
    x, val = data.train.pixels.float() / 255, [(data.val.pixels.float() / 255, data.val.labels)]
    optimizer, schedule = adam(made.parameters(), lr=0.02)
    fit(made, [[(x, data.train.labels)]] * 40, lambda m: accuracy(predict(m, val), data.val.labels),
        loss=lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), optimizer=optimizer,
        schedule=schedule)  # fmt: skip
    assert accuracy(predict(made, val), data.val.labels) > 0.9
    return made


SMALL = Preset((0,), (0.6, 0.8), (0.4, 0.6), population=12, size=0.1)
QUICK = {
    "grad": GradientSearch(epochs=7, lr=0.05), "grad without heads": GradientSearch(epochs=3, lr=0.05, head=False),
    "grad with scales": GradientSearch(epochs=3, lr=0.05, head=False, scaled=True, start="selective"),
    "ga": GeneticSearch(preset=SMALL, generations=2),
}  # fmt: skip


@pytest.mark.parametrize("method", QUICK)
def test_modules_of_one_s_own_network_are_smaller_and_answer_together(model, data, method):
    before = state_digest(model.state_dict())
    model.train()
    modules = split_into_modules(model, data, method=QUICK[method], sensitivity_images=30)
    assert model.training
    assert state_digest(model.state_dict()) == before
    assert {name: tuple(mask.shape) for name, mask in modules.kept.items()} == {"0": (3, 8), "4": (3, 12)}
    assert modules.shares().max() < 1
    assert modules.has_heads == (method == "grad")
    model.eval()
    test = [(data.test.pixels.float() / 255, data.test.labels)]
    composed = modules.composed(model, data.example)
    assert accuracy(predict(composed, test), data.test.labels) > 0.6, "chance is a third"
    assert modules.history["best"].sum() == 1
    assert modules.history.columns[0] == ("generation" if method == "ga" else "epoch")
    table = modules.dissimilarity()
    assert table.shape == (3, 3)
    assert table.diagonal().tolist() == [0, 0, 0]
    with pytest.raises(StaleArtifact, match="other base weights"):
        modules.member(network(), data.example, 0)


@pytest.mark.parametrize("method", ["grad", "ga"])
def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(model, data, method):
    found = []
    for seed in (1, 1, 2):
        torch.rand(7)
        state = torch.get_rng_state()
        found.append(split_into_modules(model, data, method=QUICK[method], seed=seed).to_bytes())
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("method", ["grad", "ga"])
def test_a_search_goes_on_from_its_checkpoint(model, data, method, tmp_path):
    whole = split_into_modules(model, data, method=QUICK[method])
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=False)
    counted = "generations" if method == "ga" else "epochs"
    half = dataclasses.replace(QUICK[method], **{counted: 1})
    split_into_modules(model, data, method=half, checkpoint=checkpoint)
    again = split_into_modules(model, data, method=QUICK[method], checkpoint=checkpoint)
    assert again.to_bytes() == whole.to_bytes()
    assert again.history.equals(whole.history)


def test_the_genetic_search_reads_one_half_of_val_once_and_chooses_by_the_other(model, data, monkeypatch):
    searches, prepared = [], []
    monkeypatch.setattr(
        genetic_search, "PopulationSearch", lambda *a: searches.append(PopulationSearch(*a)) or searches[-1]
    )
    analysis = analyse(model, data)
    with hooked_before(analysis.model.normalize, lambda _module, inputs: prepared.append(len(inputs[0]))):
        search(analysis, data, QUICK["ga"])
    (made,) = searches
    searched, held_out = halves(data.val, 2021, data.name)
    assert sum(prepared) == len(searched) + len(held_out)
    assert torch.equal(made.labels, searched.labels)
    torch.manual_seed(1)
    masks = [torch.rand(3, layer.kernels) < 0.6 for layer in analysis.layers]
    for mask in masks:
        mask[:, 0] = True
    with torch.no_grad():
        by_masks = {
            name: masked_logits(analysis.network, analysis.layers, masks, analysis.inputs(part))
            for name, part in (("searched", searched), ("held out", held_out))
        }
    some = torch.rand(len(searched)) < 0.4
    torch.testing.assert_close(made.evaluate(2, masks, some), by_masks["searched"][:, some, 2], rtol=1e-4, atol=1e-4)
    composed = by_masks["held out"].diagonal(dim1=0, dim2=2).argmax(1)
    for validate in (made.validate, composed_accuracy(analysis, held_out)):
        assert validate(masks) == accuracy(composed, held_out.labels)


def test_candidates_read_2500_images_where_no_number_is_given():
    assert GeneticSearch().images == 2500


class Branching(nn.Module):
    """What it does depends on what it reads."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_mistakes_are_told(model, data):
    with pytest.raises(UserError, match="hill: there is no such method; choose from grad, ga"):
        split_into_modules(model, data, method="hill")
    with pytest.raises(UserError, match="preset 'quick': choose from auto, simcnn-cifar10"):
        split_into_modules(model, data, method=GeneticSearch(preset="quick"))
    mixing = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    )
    with pytest.raises(UserError, match=r"cannot be split: 1 \(PixelShuffle\) mixes channels"):
        split_into_modules(mixing, data)


def test_scales_are_those_of_least_cross_entropy_on_val(model, data):
    modules = split_into_modules(model, data, method=QUICK["grad with scales"], sensitivity_images=30)
    assert isinstance(modules.heads, Scales)
    bare = Modules(modules.base, modules.kept)
    pixels = data.val.pixels.float() / 255
    with torch.no_grad():
        scales, biases = scales_and_biases(bare.composed(model, data.example)(pixels), data.val.labels)
        expected = scales * bare.composed(model, data.example)(pixels) + biases
        found = modules.composed(model, data.example)(pixels)
    assert torch.allclose(found, expected.float(), atol=1e-2)
    assert (found.argmax(1) == data.val.labels).float().mean() > 0.9


def test_heads_need_no_scale(model, data):
    with pytest.raises(UserError, match="scaled is for modules without heads"):
        split_into_modules(model, data, method=GradientSearch(scaled=True), sensitivity_images=15)


def test_names_are_those_of_the_registries():
    assert tuple(METHODS) == names.METHODS
    assert tuple(PRESETS) == names.PRESETS
    for kind, settings in (("grad", GradientSearch), ("ga", GeneticSearch)):
        with pytest.raises(UserError, match="start 'no'"):
            split_into_modules(
                network(),
                Data(images(60, 1), images(30, 2), images(30, 3), CLASSES, "colours"),
                method=settings(start="no"),
            )
        for start in names.STARTS[kind]:
            assert settings(start=start).start == start
    assert JOINS == names.JOINS
    assert tuple(FITS) == names.FITS


@pytest.mark.parametrize(
    "method",
    [GradientSearch.published(epochs=3, lr=0.02), GradientSearch(epochs=2, start="random"),
     GradientSearch(epochs=2, start="zeros"), GeneticSearch(preset=SMALL, generations=1, start="random")],
    ids=["published", "random thresholds", "zero thresholds", "random first population"],
)  # fmt: skip
def test_controls_and_the_published_start_leave_modules_that_answer(model, data, method):
    modules = split_into_modules(model, data, method=method, importance="random", sensitivity_images=15)
    assert modules.composed(model, data.example)(data.example).shape == (2, 3)
    shares = modules.shares()
    assert ((shares > 0) & (shares <= 1)).all()
    if getattr(method, "start", "") == "ones":
        assert (shares == 1).all(), "a threshold of one needs fifty steps of 0.02 to reach zero"
    if getattr(method, "start", "") == "zeros":
        assert shares.max() < 0.5, "one kernel of each layer, and those that two epochs of small steps add"


@pytest.mark.parametrize(
    ("method", "given", "place"),
    [("ga", None, "unpooled"), ("grad", None, "pooled"), ("ga", "pooled", "pooled"), ("grad", "unpooled", "unpooled"),
     (GeneticSearch(preset="rescnn-cifar10"), None, "pooled"), (GeneticSearch(preset="simcnn-svhn"), None, "unpooled"),
     (GradientSearch.published(), None, "pooled"), (GeneticSearch(preset=SMALL), None, "unpooled")],
)  # fmt: skip
def test_importance_is_read_where_the_method_reads_it(model, data, monkeypatch, method, given, place):
    seen = []
    monkeypatch.setattr(splitting, "analyse", lambda *_args, importance, **_options: seen.append(importance))
    monkeypatch.setattr(splitting, "search", lambda *_args, **_options: None)
    split_into_modules(model, data, method=method, importance=given)
    assert seen == [place]


@pytest.mark.parametrize("start", names.STARTS["grad"])
def test_modules_fall_to_chance_only_where_they_begin_as_the_whole_network(model, data, start):
    """With a learning rate near zero heads stay untrained: from a control start that is no fall."""
    method = GradientSearch(epochs=1, lr=1e-9, start=start)
    if start in ("importance", "ones"):
        with pytest.raises(
            UserError, match="modules: the validation accuracy is .* which is chance, where it was 100.0 % before"
        ):
            split_into_modules(model, data, method=method, sensitivity_images=15)
    else:
        assert split_into_modules(model, data, method=method, sensitivity_images=15).shares().max() <= 1
