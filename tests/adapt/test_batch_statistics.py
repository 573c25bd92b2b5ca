"""BN-1, BN-alpha and Schneider's form against their definitions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.adapt.batch_statistics import PRIOR_COUNTS, BnAlphaSettings, BnPriorSettings, choose_prior_count
from deeppatch.adapt.methods import adapter
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.images import Images
from deeppatch.errors import UserError


def mixed_by_hand(model, pixels, share):
    """Run a sequential network, and mix the statistics of each normalisation by hand."""
    values = pixels
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            mean = (1 - share) * layer.running_mean + share * values.mean((0, 2, 3))
            variance = (1 - share) * layer.running_var + share * values.var((0, 2, 3), correction=0)
            scale = layer.weight / (variance + layer.eps).sqrt()
            values = (values - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
        else:
            values = layer(values)
    return values


@torch.no_grad()
def test_statistics_are_those_of_the_batch(model, batches):
    for batch in batches:
        torch.testing.assert_close(adapter("bn-1", model).predict(batch), mixed_by_hand(model, batch, 1.0))
        torch.testing.assert_close(adapter("bn-alpha", model).predict(batch), mixed_by_hand(model, batch, 0.1))
        prior = adapter("bn-prior", model, BnPriorSettings(18))
        torch.testing.assert_close(prior.predict(batch), mixed_by_hand(model, batch, 9 / (9 + 18)))


@torch.no_grad()
def test_without_a_share_it_is_the_source_to_the_bit_and_with_all_it_is_bn_1(model, batches):
    source = adapter("source", model).predict(batches[0])
    assert torch.equal(source, model(batches[0]))
    assert torch.equal(adapter("bn-alpha", model, BnAlphaSettings(0)).predict(batches[0]), source)
    whole = adapter("bn-1", model).predict(batches[0])
    torch.testing.assert_close(adapter("bn-alpha", model, BnAlphaSettings(1)).predict(batches[0]), whole)
    torch.testing.assert_close(adapter("bn-prior", model, BnPriorSettings(0)).predict(batches[0]), whole)


@torch.no_grad()
def test_the_whole_set_as_one_batch_is_a_re_estimation_up_to_the_bias_of_variances(model, batches):
    images = torch.cat(batches)
    estimated = copy.deepcopy(model)
    for norm in (estimated[1], estimated[4]):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    estimated(images)
    estimated.eval()
    # the variances that torch keeps are unbiased; those of the batch are biased
    for norm, area in ((estimated[1], 64), (estimated[4], 9)):
        count = len(images) * area
        norm.running_var *= (count - 1) / count
    torch.testing.assert_close(adapter("bn-1", model).predict(images), estimated(images))


@torch.no_grad()
def test_norms_that_keep_no_statistics_stay_as_they_are(model, batches):
    model[1] = nn.BatchNorm2d(6, track_running_stats=False).eval()
    assert torch.equal(adapter("bn-alpha", model, BnAlphaSettings(0)).predict(batches[0]), model(batches[0]))


def test_a_single_pixel_has_no_statistics():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)).eval()
    with pytest.raises(UserError, match="a batch has a single image"):
        adapter("bn-1", network).predict(torch.rand(1, 3, 2, 2))


def test_shares_and_counts_are_checked(model):
    with pytest.raises(UserError, match="share=1.5: give a number from 0 to 1"):
        adapter("bn-alpha", model, BnAlphaSettings(1.5))
    with pytest.raises(UserError, match="count=-1"):
        adapter("bn-prior", model, BnPriorSettings(-1))


def test_the_prior_count_is_the_one_with_most_correct_answers(model):
    draw = torch.Generator().manual_seed(2)
    pixels = torch.rand(400, 3, 8, 8, generator=draw) * torch.rand(400, 3, 1, 1, generator=draw)
    blur = GaussianBlur((1.0,))
    blurred = blur(pixels, 1)
    # labelled by the network at one prior count: no other can be better
    wanted = adapter("bn-prior", model, BnPriorSettings(64)).predict(blurred).argmax(1)
    right = {
        count: (adapter("bn-prior", model, BnPriorSettings(count)).predict(blurred).argmax(1) == wanted).sum().item()
        for count in PRIOR_COUNTS
    }
    assert max(right, key=right.get) == 64
    assert choose_prior_count(model, Images(pixels, wanted), blur, batch_size=400) == 64
