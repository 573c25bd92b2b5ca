"""Switching between whole networks and several patches, answers of all networks, alarms, and what calibrates them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data.corruptions import corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import to_float
from deeppatch.errors import UserError
from deeppatch.evaluation import correct_predictions
from deeppatch.ledger.attacking import routed_paths
from deeppatch.patching.attachment import attach
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.comparison import compare_networks
from deeppatch.patching.experts import FirstMaps, SwitchedNetworks
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.patching.router import Router, features_of
from deeppatch.saving import save
from deeppatch.zoo.classifier import Classifier

COUNT = 60
LEVELS = corruption({"dark": lambda pixels, _g: 0.5 * pixels, "grey": lambda pixels, _g: 0.2 + 0.2 * pixels})
ANSWERING = ["benefit-both", "average"]


def network(seed: int, *, first: bool = True) -> nn.Module:
    """A network that is right on about half of the images."""
    torch.manual_seed(seed)
    start = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)] if first else [nn.AvgPool2d(2), nn.Conv2d(3, 6, 3)]
    layers = [*start, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 2)]
    return Classifier(nn.Sequential(*layers), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)).eval()


def patch_of(model: nn.Module, seed: int, example: torch.Tensor) -> Patch:
    own = copy.deepcopy(model)
    attachment = attach(own.network, {"0": [1, 4]}, "replace", own.normalize(example))
    torch.manual_seed(seed)
    with torch.no_grad():
        for unit in attachment.units.values():
            for value in unit.new_parameters().values():
                value.add_(torch.randn(value.shape))
    return extract(attachment, state_digest(model.state_dict()))


@pytest.fixture(scope="module")
def data() -> Data:
    draw = torch.Generator().manual_seed(4)
    parts = []
    for _ in range(3):
        noise = torch.rand(COUNT, 3, 5, 7, generator=draw)
        parts.append((nn.functional.interpolate(noise, (12, 14), mode="bilinear"), torch.arange(COUNT) % 2))
    return Data.of(*parts)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network(0)


@pytest.fixture(scope="module")
def experts(model, data) -> dict[str, Patch | nn.Module]:
    return {"first": patch_of(model, 3, data.example), "second": patch_of(model, 4, data.example), "tuned": network(5)}


def whole(model: nn.Module, expert: Patch | nn.Module, data: Data) -> nn.Module:
    return expert.apply(model, data.example) if isinstance(expert, Patch) else expert


@torch.no_grad()
def test_each_sample_is_answered_by_one_of_all_networks(model, experts, data):
    before = state_digest(model.state_dict())
    switched = fit_switch(model, experts, data, LEVELS, router="benefit", max_clean_drop=100)
    assert switched.names == ("original", "first", "second", "tuned")
    switched.router.threshold.fill_(0.1)
    pixels = torch.cat([LEVELS(to_float(data.test.pixels), level) for level in range(3)])
    found = switched.answer(pixels)
    logits = torch.stack([model(pixels), *(whole(model, each, data)(pixels) for each in experts.values())])
    assert len(found.expert.unique()) > 2
    torch.testing.assert_close(found.logits, logits[found.expert, torch.arange(len(pixels))], rtol=1e-4, atol=1e-5)
    assert not found.alarm.any()
    assert ((found.scores > 0.1) == (found.expert > 0)).all()
    alone = [switched.answer(each) for each in pixels.split(1)]
    assert torch.equal(torch.cat([each.expert for each in alone]), found.expert)
    torch.testing.assert_close(torch.cat([each.logits for each in alone]), found.logits, rtol=1e-4, atol=1e-5)
    assert state_digest(model.state_dict()) == before


@torch.no_grad()
def test_a_network_that_is_the_original_changes_no_answer(model, data):
    switched = fit_switch(model, copy.deepcopy(model), data, LEVELS, max_clean_drop=100)
    pixels = to_float(data.test.pixels)
    for threshold in (-100.0, 0.0, 100.0):
        switched.router.threshold.fill_(threshold)
        torch.testing.assert_close(switched(pixels), model(pixels))


@torch.no_grad()
def test_the_first_maps_are_those_of_each_network(model, experts, data):
    pixels = to_float(data.test.pixels)
    _crossing, maps = SwitchedNetworks(model, {"tuned": experts["tuned"]}, data.example).look(pixels)
    for own, seen in ((model, maps[0].original), (experts["tuned"], maps[0].replaced)):
        normed = own.network[1](own.network[0](own.normalize(pixels)))
        torch.testing.assert_close(seen, normed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ANSWERING)
def test_routers_that_read_answers_run_every_network(model, experts, data, kind, several):
    patch = experts["first"]
    given = experts if several else patch
    switched = fit_switch(model, given, data, LEVELS, router=kind, max_clean_drop=100)
    pixels = LEVELS(to_float(data.test.pixels), 1)
    scores = switched.answer(pixels).scores
    switched.router.threshold.fill_(scores.quantile(0.5))
    found = switched.answer(pixels)
    moved = found.expert > 0
    assert 20 <= int(moved.sum()) <= 40
    others = [whole(model, each, data) for each in (experts.values() if several else [patch])]
    logits = torch.stack([model(pixels), *(each(pixels) for each in others)])
    chosen = logits[found.expert, torch.arange(COUNT)]
    if kind == "average":
        both = (logits[0].softmax(1) + chosen.softmax(1)) / 2
        torch.testing.assert_close(found.logits.softmax(1)[moved], both[moved], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.logits[~moved], logits[0][~moved], rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(found.logits, chosen, rtol=1e-4, atol=1e-5)
    # scores by hand, from what each network's last layer reads and says
    crossing, maps = switched.look(pixels)
    answers = switched.run_all(crossing)
    for number, each in enumerate([model, *others]):
        read = each.network[:-1](each.normalize(pixels))
        torch.testing.assert_close(answers[number].features, read, rtol=1e-4, atol=1e-5)
    features = [features_of(kind, m, (answers[0], a)) for m, a in zip(maps, answers[1:], strict=True)]
    torch.testing.assert_close(found.scores, switched.router.all_scores(features).amax(1))
    alone = torch.cat([switched(each) for each in pixels.split(1)])
    torch.testing.assert_close(alone, found.logits, rtol=1e-3, atol=1e-4)


def test_without_a_first_convolution_only_answers_can_be_read(model, data):
    odd = network(7, first=False)
    with pytest.raises(UserError, match="does not begin with a convolution that reads the images"):
        FirstMaps(odd, data.example)
    with pytest.raises(UserError, match="choose the router benefit-both or average"):
        fit_switch(model, odd, data, LEVELS, router="benefit")
    switched = fit_switch(model, odd, data, LEVELS, router="benefit-both", max_clean_drop=100)
    assert switched(to_float(data.test.pixels)).shape == (COUNT, 2)


@torch.no_grad()
def test_samples_unlike_anything_seen_are_flagged_and_answered_by_the_original(model, experts, data):
    switched = fit_switch(model, experts["first"], data, LEVELS, max_clean_drop=100, alarm=0.1)
    assert switched.calibration["alarm_rate"] == 0.1
    pixels = to_float(data.test.pixels)
    odd = (pixels + 5 * (torch.arange(14) % 2)).clamp(0, 1)
    plain, strange = switched.answer(pixels), switched.answer(odd)
    assert plain.alarm.double().mean() < 0.4
    assert strange.alarm.all()
    assert (strange.expert == 0).all()
    torch.testing.assert_close(strange.logits, model(odd), rtol=1e-4, atol=1e-5)
    assert (plain.expert[~plain.alarm] == 1).all(), "all may switch here"
    again = Router.from_bytes(switched.router.to_bytes(), None)
    _scores, moved = switched.decide(switched.run_stem(pixels)[1])
    assert torch.equal(moved, plain.expert > 0)
    switched.router = again
    assert torch.equal(switched.answer(pixels).alarm, plain.alarm)
    comparison = compare_networks(model, experts["first"], switched, data, LEVELS)
    told = comparison.alarm_metrics()["alarm_rate"]
    assert told["clean"] == pytest.approx(100 * plain.alarm.double().mean().item())


def test_other_images_than_val_may_calibrate(model, experts, data):
    usual = fit_switch(model, experts["first"], data, LEVELS)
    same = fit_switch(model, experts["first"], data, LEVELS, calibrate=data.val)
    assert same.router.to_bytes() == usual.router.to_bytes()
    assert (usual.calibration["val_images"], same.calibration["calibration_images"]) == (COUNT, COUNT)
    other = fit_switch(model, experts["first"], data, LEVELS, calibrate=data.train.take(torch.arange(40)))
    assert other.calibration["calibration_images"] == other.calibration["clean_images"] == 40
    assert other.router.to_bytes() != usual.router.to_bytes()


def test_a_comparison_of_several_networks_has_a_row_for_each(model, experts, data):
    switched = fit_switch(model, experts, data, LEVELS, router="benefit", max_clean_drop=100)
    switched.router.threshold.fill_(0.1)
    found = compare_networks(model, experts, switched, data, LEVELS, seed=4)
    assert list(found.correct) == ["pretrained", "first", "second", "tuned", "switched", "oracle router"]
    answered = found.answered_percent()
    assert sum(each["dark"] for each in answered.values()) == pytest.approx(100)
    want = correct_predictions(switched, data.test, LEVELS, seed=4)
    assert torch.equal(found.correct["switched"].by_level, want.by_level)
    rows = found.accuracies()
    for level in ("dark", "grey"):
        assert rows["oracle router"][level] == max(rows[name][level] for name in experts)
    assert rows["oracle router"]["clean"] == rows["pretrained"]["clean"]


def test_bounds_on_newly_wrong_images_and_mistakes(model, experts, data):
    facts = fit_switch(model, experts["first"], data, LEVELS, max_clean_drop=50, max_flips=10).calibration
    assert facts["flips_bound"] <= 0.1
    assert facts["flips_bound_attained"]
    for given, said in (
        ({"max_flips": 101}, "max_flips=101: give a percentage"),
        ({"alarm": 1.0}, "alarm=1.0: give a rate of false alarms above 0, below 1"),
    ):
        with pytest.raises(UserError, match=said):
            fit_switch(model, experts["first"], data, LEVELS, **given)
    with pytest.raises(UserError, match="there is no network to switch to"):
        fit_switch(model, {}, data, LEVELS)
    switched = fit_switch(model, experts["tuned"], data, LEVELS)
    with pytest.raises(UserError, match="switches between whole networks has no file"):
        save(switched, "switched.safetensors")
    switched.router = fit_switch(model, experts, data, LEVELS, router="benefit").router
    with pytest.raises(UserError, match="the router chooses from 4 networks, not from 2"):
        switched(data.example)


@pytest.mark.parametrize("kind", ["benefit", "average"])
def test_an_attack_finds_the_paths_and_the_decision(kind, model, experts, data):
    switched = fit_switch(model, experts, data, LEVELS, router=kind, max_clean_drop=100)
    pixels = torch.cat([data.test.pixels[:20], 0.5 + 0 * data.test.pixels[:20]])
    paths, decide = routed_paths(switched)
    assert list(paths) == ["0", "1", "2", "3", "whole"]
    with torch.no_grad():
        found = switched.answer(pixels)
        assert torch.equal(decide(pixels), found.expert)
        networks = [model, *(whole(model, each, data) for each in experts.values())]
        for path, network in zip(paths.values(), networks, strict=False):
            assert torch.allclose(path(pixels), network(pixels), atol=1e-5)
    pixels.requires_grad_()
    for path in paths.values():
        (gradient,) = torch.autograd.grad(path(pixels).sum(), pixels)
        assert gradient.abs().sum() > 0
