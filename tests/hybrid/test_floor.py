"""The floor: networks between start and result, of which the endpoints are bit for bit those, and the choice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data.images import Images
from deeppatch.hybrid import floor
from deeppatch.hybrid.floor import ALPHAS, best_between, between, class_weighted_accuracy, first_best


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(5)
    return Images(torch.randint(0, 256, (30, 3, 6, 6), generator=generator, dtype=torch.uint8), torch.arange(30) % 2)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_weights_are_interpolated_and_statistics_are_those_of_training_images(images, alpha):
    start, end = network(1).eval(), network(2).eval()
    end[1].running_mean.fill_(7.0)
    before = [state_digest(each.state_dict()) for each in (start, end)]
    found = between(start, end, alpha, images, seed=1)
    assert [state_digest(each.state_dict()) for each in (start, end)] == before
    if alpha in (0, 1):
        assert state_digest(found.state_dict()) == before[int(alpha)]
        return
    for name, value in found.named_parameters():
        assert torch.allclose(value, (1 - alpha) * start.get_parameter(name) + alpha * end.get_parameter(name))
    maps = found[0](images.pixels.float() / 255)
    assert torch.allclose(found[1].running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert not found.training


def test_accuracy_is_weighted_to_the_prior_as_image_by_image():
    generator = torch.Generator().manual_seed(1)
    labels, predictions = (torch.randint(0, 3, (50,), generator=generator) for _ in range(2))
    prior = torch.tensor([0.2, 0.3, 0.5])
    shares = [(labels == c).double().mean().item() for c in range(3)]
    weights = [prior[c].item() / shares[c] for c in labels.tolist()]
    right = [float(a == b) for a, b in zip(predictions.tolist(), labels.tolist(), strict=True)]
    plain = sum(w * r for w, r in zip(weights, right, strict=True)) / sum(weights)
    assert class_weighted_accuracy(predictions, labels, prior) == pytest.approx(plain)


def test_of_equal_networks_that_nearest_to_the_start_is_taken(images, monkeypatch):
    assert [first_best(each) for each in ([1, 1, 1], [0, 2, 2], [0, 1, 2])] == [0, 1, 2]
    start = network(1).eval()
    monkeypatch.setattr(floor, "class_weighted_accuracy", lambda *_: next(scores))
    scores = iter([0.1, 0.2, 0.5, 0.5, 0.3])
    assert best_between(start, network(2).eval(), images, images, torch.tensor([0.5, 0.5]), seed=1).alpha == 0.5


@pytest.mark.parametrize(("raw_score", "kept"), [(0.6, True), (0.5, True), (0.4, False)])
def test_the_network_as_it_was_given_is_kept_where_nothing_does_better(images, monkeypatch, raw_score, kept):
    raw, start, end = network(3).train(), network(1).eval(), network(2).eval()
    scores = iter([0.1, 0.2, 0.5, 0.5, 0.3, raw_score])
    monkeypatch.setattr(floor, "class_weighted_accuracy", lambda *_: next(scores))
    found = best_between(start, end, images, images, torch.tensor([0.5, 0.5]), raw=raw, seed=1)
    assert (found.is_raw, found.raw_score, found.alpha) == (kept, raw_score, 0.0 if kept else 0.5)
    same = state_digest(found.network.state_dict()) == state_digest(raw.state_dict())
    assert (same, found.network is raw, found.network.training) == (kept, False, False)
