"""The calibration of scores by scales and biases, against plain gradient descent."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from deeppatch.metrics.logit_scaling import bias_corrected_temperature, scales_and_biases

COUNT, CLASSES = 400, 4


def drawn(temperatures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of Gaussian classes: overconfident by these factors, and with a bias."""
    shares, generator = torch.tensor([0.4, 0.3, 0.25, 0.05]), torch.Generator().manual_seed(1)
    labels = torch.multinomial(shares, COUNT, replacement=True, generator=generator)
    features = torch.randn(COUNT, CLASSES, generator=generator) + 2 * F.one_hot(labels, CLASSES)
    return temperatures * (2 * features + shares.log()) + torch.tensor([1.0, 0.0, -1.0, 0.5]), labels


def plain(logits: torch.Tensor, labels: torch.Tensor, scales: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales, biases with mean 0, and the targets: shares of classes with one image more that has 1/C of each."""
    parameters = [torch.ones(scales, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)]
    for value in parameters:
        value.requires_grad_()
    targets = F.one_hot(labels, CLASSES).double() * COUNT / (COUNT + 1) + 1 / (COUNT + 1) / CLASSES
    search = torch.optim.LBFGS(parameters, max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = F.cross_entropy(parameters[0] * logits.double() + parameters[1], targets)
        value.backward()
        return value

    search.step(loss)
    found, biases = (each.detach() for each in parameters)
    return found, biases - biases.mean(), targets


def test_a_temperature_and_biases_are_the_minimum_that_plain_gradient_descent_finds():
    logits, labels = drawn(torch.tensor(2.5))
    found = bias_corrected_temperature(logits, labels)
    scale, biases, targets = plain(logits, labels, 1)
    assert found.temperature == pytest.approx(1 / scale.item(), rel=1e-4)
    assert found.temperature == pytest.approx(2.5, rel=0.3)
    assert torch.allclose(found.biases, biases, atol=1e-3)
    assert torch.allclose(found.posteriors(logits).mean(0), targets.mean(0), atol=1e-5)


def test_scales_and_biases_of_classes_are_the_minimum_that_plain_gradient_descent_finds():
    temperatures = torch.tensor([2.5, 1.0, 4.0, 0.5])
    logits, labels = drawn(temperatures)
    found, biases = scales_and_biases(logits, labels)
    expected = plain(logits, labels, CLASSES)
    assert torch.allclose(found, expected[0], rtol=1e-3)
    assert torch.allclose(found * temperatures, torch.ones(CLASSES).double(), atol=0.5)
    assert torch.allclose(biases - biases.mean(), expected[1], atol=1e-2)


def test_the_temperature_is_finite_where_all_is_correct_and_a_class_has_no_image():
    logits = 9 * F.one_hot(torch.arange(20) % 2, 3).float()
    found = bias_corrected_temperature(logits, torch.arange(20) % 2)
    assert math.isfinite(found.temperature)
    assert bool(found.biases.isfinite().all())
