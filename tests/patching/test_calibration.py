"""A router fitted by named values, and how the switched model routes, against plain loops."""

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
from deeppatch.metrics import upper_bound
from deeppatch.patching.attachment import attach
from deeppatch.patching.calibration import fit_switch, router_features
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.patching.routing import route_by_level
from deeppatch.zoo.classifier import Classifier, network_of, normalize_of

COUNT = 60


def speckle(pixels, generator):
    return (pixels + 0.6 * torch.rand(pixels.shape, generator=generator)) / 1.6


@pytest.fixture
def data() -> Data:
    """Smooth images of 20x28 pixels in two classes, of one channel."""
    noise = torch.rand(COUNT, 1, 5, 7, generator=torch.Generator().manual_seed(4))
    part = (nn.functional.interpolate(noise, (20, 28), mode="bilinear"), torch.arange(COUNT) % 2)
    return Data.of(part, part, part)


@pytest.fixture(params=["wrapped", "plain"])
def model(request) -> nn.Module:
    torch.manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    return Classifier(network, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)) if request.param == "wrapped" else network


@pytest.fixture
def patch(model, data) -> Patch:
    """New filters drawn at random."""
    own = copy.deepcopy(model).eval()
    attachment = attach(network_of(own), {"0": [1, 4, 6]}, "replace", normalize_of(own, data.example))
    with torch.no_grad():
        for unit in attachment.units.values():
            for value in unit.new_parameters().values():
                value.add_(0.1 * torch.randn(value.shape))
    return extract(attachment, state_digest(model.state_dict()))


@pytest.mark.parametrize("size", [1, 7, 256])
def test_the_switched_model_answers_each_image_by_one_of_both_networks(model, patch, data, size):
    state, mode = {k: v.clone() for k, v in model.state_dict().items()}, model.training
    switched = fit_switch(model, patch, data, speckle, max_clean_drop=5, batch_size=size)
    assert model.training == mode
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    levels = corruption(speckle)
    found, routing = route_by_level(switched, data.test, levels, batch_size=size)
    networks = [copy.deepcopy(model).eval(), patch.apply(model, data.example)]
    for level in range(2):
        pixels = levels(to_float(data.test.pixels), level)
        with torch.no_grad():
            logits, scores, moved = switched.route(pixels)
            both = torch.stack([network(pixels) for network in networks])
        torch.testing.assert_close(logits, both[moved.long(), torch.arange(COUNT)], rtol=1e-4, atol=1e-5)
        if level == 0:
            # features that hardly vary on val weigh much, and rounding with them
            torch.testing.assert_close(routing.scores[0], scores, rtol=0.02, atol=0.1)
            assert torch.equal(found.by_level[0], logits.argmax(1) == data.test.labels)
    assert routing.switched[1].double().mean() > 0.9 > 0.5 > routing.switched[0].double().mean()
    assert found.in_stream.shape == (COUNT,)


@pytest.mark.parametrize("router", ["probe", "flips"])
def test_the_calibration_tells_what_val_showed(model, patch, data, router):
    switched = fit_switch(model, patch, data, {"speckle": speckle, "dark": lambda p, _g: p / 2}, router=router)
    facts = switched.calibration
    assert facts["val_images"] == COUNT
    assert switched.router.kind == router
    if router == "flips":
        assert facts["mean_d_clean"] != facts["mean_d_degraded"]
        return
    assert (facts["clean_images"], facts["max_clean_drop"]) == (COUNT, 0.001)
    assert facts["clean_drop_bound"] == upper_bound(facts["clean_losses"], COUNT)
    assert not facts["bound_attained"], "sixty images cannot show so little"


def test_features_are_those_of_the_first_patched_maps(model, patch, data):
    switched = fit_switch(model, patch, data, speckle)
    found = router_features(switched, "flips", data.val, corruption(speckle), batch_size=7)
    maps = switched.run_stem(to_float(data.val.pixels))[1]
    want = [
        ((old > 0) != (new > 0)).double().mean().item() for old, new in zip(maps.original, maps.replaced, strict=True)
    ]
    assert found[:COUNT, 0].tolist() == pytest.approx(want, abs=1e-6)
    assert len(found) == 2 * COUNT


def test_a_majority_decides_for_a_batch_where_that_is_asked(model, patch, data):
    switched = fit_switch(model, patch, data, speckle, vote=True)
    moved = switched.route(to_float(data.val.pixels))[2]
    assert moved.unique().numel() == 1


def test_what_cannot_be_fitted_is_refused(model, patch, data):
    with pytest.raises(
        UserError, match="no router called flip; choose from probe, flips, benefit, benefit-both, average"
    ):
        fit_switch(model, patch, data, speckle, router="flip")
    with pytest.raises(UserError, match="max_clean_drop=-1: give percentage points"):
        fit_switch(model, patch, data, speckle, max_clean_drop=-1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(UserError, match="other base weights"):
        fit_switch(other, patch, data, speckle)
