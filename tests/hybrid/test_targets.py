from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.hybrid import targets


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_smoothing_takes_from_the_label_and_gives_to_the_others_alone():
    found = targets.smooth_labels(torch.tensor([2, 0]), 5, 0.1)
    want = torch.tensor([[0.025, 0.025, 0.9, 0.025, 0.025], [0.9, 0.025, 0.025, 0.025, 0.025]])
    assert torch.allclose(found, want)
    assert torch.equal(targets.smooth_labels(torch.tensor([1]), 3, 0), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("classes", [2, 3, 10, 43])
def test_the_loss_on_smoothed_labels_is_torch_s_with_more_smoothing(classes, draw):
    """torch spreads its smoothing over all C classes: C / (C - 1) times as much is the same."""
    logits = torch.randn(7, classes, generator=draw)
    labels = torch.randint(0, classes, (7,), generator=draw)
    want = F.cross_entropy(logits, labels, label_smoothing=0.1 * classes / (classes - 1))
    batch = (logits, targets.smooth_labels(labels, classes, 0.1), targets.row_weights(7, 0, 0, logits.device))
    assert torch.allclose(targets.weighted_loss(nn.Identity(), batch), want)


def test_sharpening_at_a_half_is_squares_over_their_sum(draw):
    given = torch.rand(6, 4, generator=draw).softmax(1)
    found = targets.sharpen(given, 0.5)
    assert torch.allclose(found, given**2 / (given**2).sum(1, keepdim=True))
    assert torch.allclose(found.sum(1), torch.ones(6))
    assert (found.max(1).values > given.max(1).values).all()
    assert torch.allclose(targets.sharpen(given, 1.0), given)
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.equal(targets.sharpen(certain, 0.5), certain)


def test_a_guess_is_the_sharpened_mean_over_the_views_of_an_image(tiny, draw):
    views = torch.rand(3, 4, 3, 12, 12, generator=draw)
    with torch.no_grad():
        each = torch.stack([torch.stack([tiny(views[i, k : k + 1]).softmax(1)[0] for k in range(4)]) for i in range(3)])
    want = each.mean(1) ** 2
    found = targets.pseudo_labels(tiny, views, 0.5)
    assert torch.allclose(found, want / want.sum(1, keepdim=True), atol=1e-6)
    assert not found.requires_grad


def test_guessing_in_train_mode_moves_the_statistics_of_normalisation_and_no_weight(tiny):
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    tiny.train()
    targets.pseudo_labels(tiny, torch.rand(2, 5, 3, 12, 12), 0.5)
    changed = {key for key, value in tiny.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {
        f"network.bn{i}.{name}" for i in (1, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }  # fmt: skip


def test_mixing_is_the_same_for_pixels_and_targets_and_keeps_their_sum(draw):
    pixels, taught = torch.rand(9, 3, 4, 4, generator=draw), torch.rand(9, 5, generator=draw).softmax(1)
    partners, share = torch.randperm(9, generator=draw), torch.tensor(0.7)
    mixed = targets.mix_rows(taught, partners, share)
    assert torch.allclose(mixed, 0.7 * taught + 0.3 * taught[partners])
    assert torch.allclose(mixed.sum(1), torch.ones(9))
    assert torch.allclose(targets.mix_rows(pixels, partners, share), 0.7 * pixels + 0.3 * pixels[partners])
    assert torch.equal(targets.mix_rows(pixels, partners, torch.tensor(1.0)), pixels)


def test_shares_are_of_a_beta_and_leave_each_row_the_larger_part(draw):
    shares = targets.mixing_shares(20_000, 0.75, draw)
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    both = np.concatenate([shares.numpy(), 1 - shares.numpy()])  # Beta(a, a) is symmetric
    assert both.var() == pytest.approx(1 / (4 * (2 * 0.75 + 1)), rel=0.03)
    assert torch.equal(targets.mixing_shares(5, 0.75, torch.Generator().manual_seed(1)),
                       targets.mixing_shares(5, 0.75, torch.Generator().manual_seed(1)))  # fmt: skip


def test_the_loss_is_cross_entropy_of_labelled_rows_and_lambda_times_squared_error_of_guessed_ones(draw):
    logits = torch.randn(7, 4, generator=draw)
    taught = torch.rand(7, 4, generator=draw).softmax(1)
    probabilities = logits.softmax(1)
    labelled = sum(-(taught[i] * probabilities[i].log()).sum() for i in range(3)) / 3
    guessed = sum((probabilities[i] - taught[i]).square().sum() / 4 for i in range(3, 7)) / 4
    weights = targets.row_weights(3, 4, 100.0, logits.device)
    found = targets.weighted_loss(nn.Identity(), (logits, taught, weights))
    assert found.item() == pytest.approx((labelled + 100 * guessed).item(), rel=1e-5)


def test_guessed_rows_cost_nothing_where_the_prediction_is_the_target(draw):
    logits = torch.randn(6, 4, generator=draw)
    weights = targets.row_weights(2, 4, 100.0, logits.device)
    weights[0] = 0  # the labelled rows aside
    assert targets.weighted_loss(nn.Identity(), (logits, logits.softmax(1), weights)).item() == pytest.approx(
        0, abs=1e-9
    )


def test_an_impossible_class_gives_no_nan():
    logits = torch.tensor([[200.0, -200.0, 0.0]])
    taught = torch.tensor([[1.0, 0.0, 0.0]])
    value = targets.weighted_loss(nn.Identity(), (logits, taught, targets.row_weights(1, 0, 0, logits.device)))
    assert math.isfinite(value.item())
    assert value.item() == pytest.approx(0, abs=1e-6)
