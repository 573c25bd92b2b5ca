"""The first-order loss on a model where it is known, and what is chosen by it, against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.data.corruptions import Spatial
from deeppatch.data.epochs import Passes
from deeppatch.data.pairs import fixed_draw
from deeppatch.errors import UserError
from deeppatch.retrain.robot import extremes, first_order_loss, from_sections, robot


def plain(model, pixels, clean, label, radius):
    """The loss of one image, by itself."""
    x = pixels.double().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x[None]), label[None]), x)
    return float(radius * gradient.abs().sum() - (gradient * (pixels - clean)).sum())


@pytest.fixture
def linear():
    """A linear classifier of two classes: the sign of its gradient is the same everywhere."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).double()


def test_of_a_linear_model_it_is_largest_at_the_centre_and_zero_at_the_worst_corner(linear):
    clean, labels = torch.rand(6, 3, 4, 4).double(), torch.arange(6) % 2
    radius = torch.linspace(0.01, 0.3, 6).double()
    x = clean.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(linear(x), labels, reduction="sum"), x)
    centre = first_order_loss(linear, clean, clean, labels, radius)
    assert torch.allclose(centre, radius * gradient.abs().sum((1, 2, 3)))
    corner = clean + radius.view(-1, 1, 1, 1) * gradient.sign()
    assert first_order_loss(linear, corner, clean, labels, radius).abs().max() < 1e-12
    assert centre.min() > 0.001


def test_it_is_not_negative_within_the_ball_and_the_same_for_all_batch_sizes(tiny):
    clean, labels, radius = torch.rand(30, 3, 12, 12), torch.arange(30) % 5, torch.rand(30) / 3
    pixels = clean + radius.view(-1, 1, 1, 1) * (2 * torch.rand(30, 3, 12, 12) - 1)
    found = first_order_loss(tiny, pixels, clean, labels, radius)
    assert found.min() >= 0
    single = [first_order_loss(tiny, *(each[n : n + 1] for each in (pixels, clean, labels, radius))) for n in range(30)]
    assert torch.allclose(found, torch.cat(single), rtol=1e-4)
    tiny.double()
    alone = [plain(tiny, pixels[n].double(), clean[n].double(), labels[n], radius[n]) for n in range(30)]
    assert found.tolist() == pytest.approx(alone, rel=1e-3)
    assert all(parameter.grad is None for parameter in tiny.parameters())


@pytest.mark.parametrize("count", [0, 1, 2, 7, 20, 50])
def test_extremes_are_the_ends_of_the_sorted_scores(count):
    scores = torch.randint(0, 9, (20,), generator=torch.Generator().manual_seed(count)).float()
    ascending = sorted(range(20), key=lambda row: (scores[row].item(), row))
    low = ascending[: min(count, 20) // 2]
    descending = [row for row in sorted(range(20), key=lambda row: (-scores[row].item(), row)) if row not in low]
    assert extremes(scores, count).tolist() == low + descending[: min(count, 20) - len(low)]


def round_by_round(scores, count, sections):
    """How many each section gives: one a round as long as it has some."""
    low, width = min(scores), (max(scores) - min(scores)) / sections
    left = [0] * sections
    for score in scores:
        left[min(sections - 1, math.floor((score - low) / width))] += 1
    given = [0] * sections
    while sum(given) < min(count, len(scores)):
        for section in range(sections):
            if given[section] < left[section] and sum(given) < count:
                given[section] += 1
    return given


@pytest.mark.parametrize("count", [1, 5, 40, 77, 100, 200])
def test_every_section_gives_the_same_number_and_short_ones_all(count):
    scores = torch.rand(100, generator=torch.Generator().manual_seed(3)).double().square()
    rows = from_sections(scores, count, sections=10, seed=5)
    assert len(rows) == len(rows.unique()) == min(count, 100)
    width = (scores.max() - scores.min()) / 10
    section = ((scores[rows] - scores.min()) / width).long().clamp(max=9)
    assert torch.bincount(section, minlength=10).tolist() == round_by_round(scores.tolist(), count, 10)
    if count < 100:
        assert rows.tolist() != from_sections(scores, count, sections=10, seed=6).tolist()


def test_equal_scores_are_one_section():
    assert sorted(from_sections(torch.ones(5), 5, sections=3).tolist()) == list(range(5))
    assert from_sections(torch.empty(0), 5).tolist() == []


def test_degraded_images_alone_are_scored_against_their_clean_versions(tiny, data, blur):
    draw = fixed_draw(data.train, blur, 16, 2021)
    rows = (draw.levels > 0).nonzero().flatten()
    pixels = torch.cat([pixels for pixels, _ in draw])
    clean, labels = data.train.pixels.float() / 255, data.train.labels
    found = robot(tiny, data, blur, select_images=8, epochs=1, batch_size=16)
    chosen = found.documents["selection.json"]
    radius = (pixels - clean).abs().amax((1, 2, 3))
    scores = first_order_loss(tiny, pixels[rows], clean[rows], labels[rows], radius[rows])
    assert chosen["index"] == rows[extremes(scores, 8)].tolist()
    assert chosen["level"] == draw.levels[chosen["index"]].tolist()
    assert min(chosen["score"]) >= 0
    assert found.passes == Passes(train=len(rows) + 68, forward=420)
    assert found.facts["scored_images"] == len(rows)


def test_it_chooses_of_every_section_of_random_corruptions_too(tiny, data):
    """Where pixels depend on the batch they are kept, and images keep their numbers."""

    def noise(pixels, generator):
        return pixels + 0.2 * torch.randn(pixels.shape, generator=generator)

    found = robot(tiny, data, noise, select="multisection", select_images=9, epochs=1, batch_size=16)
    chosen = found.documents["selection.json"]
    draw = fixed_draw(data.train, Spatial((1,)), 16, 2021)  # one level, too
    assert set(chosen["index"]) <= set(draw.index[draw.levels > 0].tolist())
    assert chosen["level"] == [1] * 9


def test_images_without_clean_versions_are_refused(tiny, data, blur):
    blur.paired = False
    with pytest.raises(UserError, match="clean version"):
        robot(tiny, data, blur)
