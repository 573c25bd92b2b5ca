"""Rings of spatial frequencies against a plain sum, and the choice of a condition against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.errors import DataProblem
from deeppatch.metrics import upper_bound
from deeppatch.retrain.selector import Selector, fit_selector, loosest, odds, rings


def plain_rings(image: np.ndarray) -> list[float]:
    """Return the logarithm of each ring's share, frequency by frequency."""
    grey = image.mean(0)
    height, width = grey.shape
    energy = [0.0] * 17
    spectrum = np.fft.fft2(grey)
    for row in range(height):
        for column in range(width):
            down = (row if row < height / 2 else row - height) / height
            across = (column if column < width / 2 else column - width) / width
            ring = max(1, min(16, round(32 * math.hypot(down, across))))
            energy[0 if row == column == 0 else ring] += abs(spectrum[row, column]) ** 2
    total = sum(energy[1:])
    return [math.log(max(each / total, 1e-12)) for each in energy[1:]]


@pytest.mark.parametrize("size", [(32, 32), (12, 20), (33, 31)])
def test_rings_are_those_of_the_plain_sum(size):
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    for image, found in zip(pixels.numpy(), rings(pixels), strict=True):
        assert found.numpy() == pytest.approx(np.array(plain_rings(image.astype(np.float64))), rel=1e-6)


def test_an_image_is_the_same_alone_and_a_plain_one_is_nothing_special():
    pixels = torch.rand(9, 3, 32, 32)
    assert torch.allclose(rings(pixels[4:5])[0], rings(pixels)[4], rtol=1e-12)
    assert rings(torch.full((1, 3, 32, 32), 0.5)).exp().allclose(torch.full((1, 16), 1 / 16).double())


def test_high_rings_fall_with_blur():
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    blur = GaussianBlur(SIGMAS)
    high = torch.stack([rings(blur(pixels, level))[:, 8:].exp().sum(1) for level in range(4)])
    assert (high.diff(dim=0) < 0).all()


def data(seed: int = 0, conditions: int = 3):
    draw = np.random.default_rng(seed)
    condition = np.repeat(np.arange(conditions), 40)
    image = np.tile(np.arange(40), conditions)
    features = draw.standard_normal((40 * conditions, 16)) + 0.8 * condition[:, None] * np.arange(16) / 16
    return features, condition, image, draw.random((40, conditions)) < 0.4


@pytest.mark.parametrize("conditions", [2, 3])
def test_scores_are_those_of_the_regression_on_standardised_features(conditions):
    features, condition, image, wrong = data(conditions=conditions)
    selector, _ = fit_selector(features, condition, image, wrong, 1.0)
    scaler = StandardScaler().fit(features)
    plain = LogisticRegression(class_weight="balanced", max_iter=2000).fit(scaler.transform(features), condition)
    scores = torch.from_numpy(features) @ selector.weight.T + selector.bias
    expected = plain.predict_proba(scaler.transform(features))
    assert scores.softmax(1).numpy() == pytest.approx(expected, abs=1e-6)
    chosen = selector.select(torch.from_numpy(features)).numpy()
    for row, found in zip(expected, chosen, strict=True):
        surer = math.log((1 - row[0]) / row[0]) > float(selector.threshold)
        assert found == (1 + row[1:].argmax() if surer else 0)
    assert 0 < (chosen == 0).sum() < len(chosen)


def test_the_selector_reads_pixels():
    pixels = torch.rand(4, 3, 32, 32)
    weight = torch.zeros(2, 16)
    weight[1, 15] = 1.0
    highest = rings(pixels)[:, 15]
    selector = Selector(weight, torch.zeros(2), highest.sort().values[1:3].mean())
    assert torch.equal(selector(pixels) == 1, highest > highest.sort().values[1])


@pytest.mark.parametrize("max_drop", [0.0, 0.05, 0.1, 0.3, 1.0])
def test_the_threshold_is_the_lowest_that_keeps_the_bound(max_drop):
    draw = np.random.default_rng(4)
    scores, lost = draw.standard_normal(60) + 1, draw.random(60) < 0.3
    threshold, losses = loosest(scores, lost, max_drop)
    candidates = [0.0, *scores[scores > 0]]
    within = [each for each in candidates if upper_bound(int((lost & (scores > each)).sum()), 60) <= max_drop]
    if max_drop < upper_bound(0, 60):
        within = [each for each in candidates if not (lost & (scores > each)).any()]
    assert set(scores[scores > threshold]) == set(scores[scores > min(within)])
    assert losses == (lost & (scores > threshold)).sum()


def test_odds_are_against_the_first_column():
    scores = torch.tensor([[1.0, 2.0, 0.5]]).double()
    share = scores.softmax(1)[0, 0]
    assert odds(scores).item() == pytest.approx(math.log((1 - share) / share))


def test_a_single_image_is_too_few():
    features, condition, image, wrong = data()
    with pytest.raises(DataProblem, match="a single image"):
        fit_selector(features, condition, np.zeros_like(image), wrong, 1.0)
