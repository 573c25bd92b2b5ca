from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.data.augmix import views
from deeppatch.hybrid import consistency as tta
from deeppatch.hybrid.consistency import consistency, summary, threshold


def fresh(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(predictions: torch.Tensor) -> tuple[float, float, float, list[float]]:
    """Entropy over log C, single entropy, variance and mean of one image's predictions (V, C), number by number."""
    count, classes = predictions.shape
    rows = predictions.tolist()
    mean = [sum(row[c] for row in rows) / count for c in range(classes)]

    def entropy(values):
        return -sum(p * math.log2(p) for p in values if p > 0) / math.log2(classes)

    variance = sum(sum((row[c] - mean[c]) ** 2 for row in rows) / (count - 1) for c in range(classes))
    return entropy(mean), entropy(rows[0]), variance, mean


def test_figures_are_those_of_the_definition():
    predictions = torch.rand(12, 5, 7, generator=fresh()).mul(4).softmax(2).double()
    entropy, single, variance, mean = summary(predictions)
    for number, each in enumerate(predictions):
        expected = plain(each)
        assert [entropy[number].item(), single[number].item(), variance[number].item()] == pytest.approx(expected[:3])
        assert mean[number].tolist() == pytest.approx(expected[3])


def test_views_that_are_all_the_image_give_the_single_entropy_and_no_variance():
    one = torch.rand(6, 1, 4, generator=fresh()).softmax(2)
    entropy, single, variance, _mean = summary(one.expand(-1, 9, -1))
    torch.testing.assert_close(entropy, single)
    torch.testing.assert_close(variance, torch.zeros(6))


def test_a_uniform_prediction_is_one_and_a_certain_one_nothing_without_nan():
    uniform, certain = torch.full((1, 9, 10), 0.1), F.one_hot(torch.zeros(1, 9, dtype=torch.long), 10).float()
    assert summary(uniform)[0].item() == pytest.approx(1)
    found = summary(certain)
    assert found[0].item() == 0
    assert all(part.isfinite().all() for part in found)


def test_underflow_to_zero_poisons_nothing(tiny):
    with torch.no_grad():
        tiny.network.fc.weight.mul_(1e4)
    pixels = torch.randint(0, 256, (9, 3, 12, 12), dtype=torch.uint8, generator=fresh())
    found = consistency(tiny, pixels, 2, fresh())
    assert (tiny(pixels.float() / 255).softmax(1) == 0).any()
    assert found.entropy.isfinite().all()
    assert found.variance.isfinite().all()


def test_a_model_is_shown_the_image_and_its_views_whatever_the_batch(tiny, monkeypatch):
    monkeypatch.setattr(tta, "CHUNK", 16)
    pixels = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=fresh(3))
    found, small = (consistency(tiny.train(), pixels, 4, fresh(), batch_size=size) for size in (256, 7))
    assert tiny.training, "the mode is as it was"
    tiny.eval()
    draw = fresh()
    expected = [summary(tiny(part.flatten(0, 1)).softmax(1).unflatten(0, part.shape[:2]).detach())
                for part in (views(chunk, 4, draw) for chunk in pixels.split(16))]  # fmt: skip
    for place, name in enumerate(("entropy", "single", "variance", "mean")):
        torch.testing.assert_close(getattr(found, name), torch.cat([part[place] for part in expected]))
        torch.testing.assert_close(getattr(small, name), getattr(found, name))
    torch.testing.assert_close(found.mean.argmax(1).bincount(minlength=5).sum(), torch.tensor(40))


def test_two_passes_of_one_generator_see_other_views(tiny):
    pixels = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8, generator=fresh(3))
    draw = fresh()
    first, second = (consistency(tiny, pixels, 3, draw) for _ in range(2))
    assert torch.equal(first.single, second.single)
    assert not torch.equal(first.entropy, second.entropy)


def test_without_views_the_image_speaks_alone(tiny):
    found = consistency(tiny, torch.zeros(3, 3, 12, 12, dtype=torch.uint8), 0, fresh())
    torch.testing.assert_close(found.entropy, found.single)
    assert found.variance.tolist() == [0, 0, 0]


def test_tau_is_the_mean_entropy_at_average_distance_from_the_training_images(monkeypatch):
    for name, value in (("NEIGHBOURS", 5), ("TYPICAL_IMAGES", 9), ("SAMPLED_IMAGES", 30), ("CHUNK", 7)):
        monkeypatch.setattr(tta, name, value)
    logits, train = torch.randn(50, 6, generator=fresh(1)), torch.randn(40, 6, generator=fresh(2))
    entropy = torch.rand(50, generator=fresh(3))
    chosen = torch.randperm(50, generator=fresh(4))[:30].tolist()
    distances = []
    for place in chosen:
        every = sorted(1 - F.cosine_similarity(logits[place], row, dim=0).item() for row in train)
        distances.append(sum(every[:5]) / 5)
    middle = sum(distances) / 30
    typical = sorted(range(30), key=lambda number: abs(distances[number] - middle))[:9]
    expected = sum(entropy[chosen[number]].item() for number in typical) / 9
    assert threshold(entropy, logits, train, fresh(4)) == pytest.approx(expected, rel=1e-5)


def test_tau_of_a_constant_entropy_is_that_constant_and_small_sets_will_do():
    logits = torch.randn(12, 3, generator=fresh())
    assert threshold(torch.full((12,), 0.25), logits, logits[:4], fresh()) == pytest.approx(0.25)


class Untrained(nn.Module):
    """Says what it has been shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[torch.Tensor] = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x)
        return x.mean((2, 3)) * self.scale


def test_no_gradient_and_no_flip():
    model = Untrained()
    pixels = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8, generator=fresh())
    assert not consistency(model, pixels, 1, fresh()).mean.requires_grad
    assert torch.equal(model.shown[0][::2], pixels.float() / 255), "view 0 is the image itself"
