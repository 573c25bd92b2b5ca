"""The divergence and its bounds, the views of three chains, and that the degradation is never trained on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from deeppatch.data import augmix as mixtures
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.epochs import Passes
from deeppatch.data.views import Shuffled
from deeppatch.retrain.augmix import Mixed, augmix, jensen_shannon, mixed_loss


def test_equal_answers_have_no_divergence_and_different_ones_at_most_ln_3():
    answers = torch.randn(3, 50, 10, generator=torch.Generator().manual_seed(1)).mul(2).softmax(2).double()
    found = jensen_shannon(answers)
    assert found.min() > 0
    assert found.max() < math.log(3)
    assert jensen_shannon(answers[:1].expand(3, -1, -1)).abs().max() < 1e-12
    assert jensen_shannon(torch.eye(10)[torch.tensor([[1], [2], [3]])]).item() == pytest.approx(math.log(3))
    for order in ([1, 2, 0], [2, 1, 0]):
        assert torch.allclose(jensen_shannon(answers[order]), found), "symmetric"


def test_it_is_the_mean_of_three_divergences_from_the_mean():
    for row in torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2)).softmax(2).double():
        mean = [sum(p[c] for p in row.tolist()) / 3 for c in range(4)]
        plain = sum(p[c] * math.log(p[c] / mean[c]) for p in row.tolist() for c in range(4)) / 3
        assert jensen_shannon(row.unsqueeze(1)).item() == pytest.approx(plain)


def test_the_loss_is_cross_entropy_on_the_image_and_the_weighted_divergence_in_one_pass(tiny):
    pixels, labels = torch.rand(6, 3, 3, 12, 12), torch.arange(6) % 5
    tiny.train()
    logits = tiny(torch.cat([pixels[:, 0], pixels[:, 1], pixels[:, 2]])).view(3, 6, 5)
    plain = F.cross_entropy(logits[0], labels) + 12 * jensen_shannon(logits.softmax(2)).mean()
    assert mixed_loss(12.0)(tiny, (pixels, labels)).item() == pytest.approx(plain.item())


def test_a_view_mixes_the_image_with_a_mean_of_three_chains():
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    found = mixtures.views(pixels, 2, torch.Generator().manual_seed(6), width=3)
    assert torch.equal(found[:, 0], pixels.float() / 255)
    chains = mixtures.draw_chains(9 * 2 * 3, torch.Generator().manual_seed(6))
    ends = mixtures.apply_chains(pixels.repeat_interleave(6, 0), chains).view(9, 2, 3, -1).double() / 255
    image = (pixels.double() / 255).view(9, 1, 1, -1)
    # the weights of the chains, from the values: a view is m (w_1, w_2, w_3) on chains and 1 - m on the image
    for number in range(9):
        for view in range(2):
            design = torch.cat([ends[number, view], image[number, 0]]).T
            weights = torch.linalg.lstsq(design, found[number, 1 + view].double().view(-1, 1), driver="gelsd").solution
            assert (design @ weights - found[number, 1 + view].double().view(-1, 1)).abs().max() < 1e-5
            assert weights.sum().item() == pytest.approx(1, abs=1e-3)


def test_weights_of_chains_are_uniform_on_the_simplex():
    marked = torch.eye(3, dtype=torch.uint8).view(1, 1, 3, 3, 1, 1).expand(1, 20_000, -1, -1, -1, -1)
    weights = mixtures._mean_of_chains(marked, torch.Generator().manual_seed(1)).flatten(2)[0]
    assert torch.allclose(weights.sum(1), torch.ones(20_000))
    assert weights.min() >= 0
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    # a share of Dirichlet(1, 1, 1) is above x with probability (1 - x)^2
    for x in (0.2, 0.5, 0.8):
        assert (weights > x).double().mean().item() == pytest.approx((1 - x) ** 2, abs=0.01)


def test_batches_are_those_of_the_epoch_with_two_mixtures_drawn_by_seed_and_epoch(images):
    epoch = Shuffled(images, 25, 7, 1)
    found, again = list(Mixed(epoch, 7, 1)), list(Mixed(epoch, 7, 1))
    assert [len(labels) for _, labels in found] == Mixed(epoch, 7, 1).sizes == [25, 25, 10]
    for (views, labels), (same, _), (pixels, known) in zip(found, again, epoch, strict=True):
        assert views.shape == (len(labels), 3, 3, 12, 12)
        assert torch.equal(views, same)
        assert torch.equal(views[:, 0], pixels)
        assert torch.equal(labels, known)
        assert not torch.equal(views[:, 1], views[:, 2])
        assert views.min() >= 0
        assert views.max() <= 1
    assert not torch.equal(found[0][0][:, 1], next(iter(Mixed(epoch, 7, 2)))[0][:, 1])


def test_the_degradation_is_not_trained_on_unless_asked(tiny, data, content):
    weak, strong = GaussianBlur((0.5, 1.0)), GaussianBlur((2.0, 3.0))
    plain, other, asked = (
        augmix(tiny, data, blur, augmix_blur=told, epochs=1, batch_size=20)
        for blur, told in ((weak, False), (strong, False), (strong, True))
    )
    assert content(plain) == content(other) != content(asked)
    assert plain.passes == Passes(train=180, forward=180), "three passes for each image"
    assert content(augmix(tiny, data, weak, augmix_weight=1.0, epochs=1, batch_size=20)) != content(plain)
