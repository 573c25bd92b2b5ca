"""Samples that resemble nothing seen: distances against their definition, and alarms at the stated rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeppatch.errors import DataProblem
from deeppatch.patching.alarms import alarm_metrics
from deeppatch.patching.density import SHRINKAGE, fit_density


def features(draw: np.random.Generator, images: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three conditions of two correlated features and one that is constant."""
    condition = np.repeat(np.arange(3), images)
    mixing = np.array([[2.0, 0.5], [0.0, 0.1]])
    found = draw.normal(size=(3 * images, 2)) @ mixing + np.array([[0, 0], [5, 0], [0, 3]])[condition]
    return np.c_[found, np.full(3 * images, 7.0)], np.tile(np.arange(images), 3), condition


def test_distances_are_those_of_mahalanobis_from_the_nearest_condition():
    draw = np.random.default_rng(0)
    seen, image, condition = features(draw)
    density = fit_density(seen, image, condition, 0.05)
    points = np.c_[draw.normal(0, 4, (6, 2)), np.full(6, 7.0)]
    found = density(torch.from_numpy(points)).numpy()
    two, centres = seen[:, :2], np.stack([seen[condition == kind, :2].mean(0) for kind in range(3)])
    scale = two.std(0)
    within = (two - centres[condition]) / scale
    covariance = within.T @ within / (900 - 3)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)) + 1e-6 * np.eye(2)
    for point, distance in zip(points[:, :2], found, strict=True):
        gaps = [(point - centre) / scale for centre in centres]
        assert distance == pytest.approx(min(gap @ np.linalg.inv(covariance) @ gap for gap in gaps), rel=1e-5)


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_false_alarms_are_as_rare_as_stated_on_images_that_were_not_seen(rate):
    draw = np.random.default_rng(2)
    density = fit_density(*features(draw), rate)
    unseen, _image, condition = features(draw, 5000)
    alarm = (density(torch.from_numpy(unseen)) > density.threshold).numpy()
    for kind in (condition == 0, condition > 0):
        assert alarm[kind].mean() < rate + 0.02
    assert alarm.mean() > rate / 3
    far = unseen + np.array([40.0, 0, 0])
    assert (density(torch.from_numpy(far)) > density.threshold).double().mean() > 0.9


def test_one_image_is_too_few():
    with pytest.raises(DataProblem, match="a single image"):
        fit_density(np.zeros((3, 2)), np.zeros(3), np.arange(3), 0.1)


def test_alarm_measures_equal_counts_in_streams():
    clean, fog, snow = (torch.arange(20) < count for count in (1, 10, 4))
    found = alarm_metrics(torch.stack([clean, fog, snow]), ["fog", "snow"], "all levels")
    assert found["alarm_rate"] == {"clean": 5.0, "fog": 50.0, "snow": 20.0, "all levels": 35.0}
    assert found["recall"] == {"5 %": 35.0, "50 %": 35.0}
    # of 4,000 samples 200 are degraded: 70 alarms there, and 190 of 3,800 elsewhere
    assert found["precision"]["5 %"] == pytest.approx(100 * 70 / (70 + 190))
    assert found["precision"]["50 %"] == pytest.approx(100 * 700 / (700 + 100))
    nothing = alarm_metrics((torch.zeros(3, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)), ["fog"])
    assert nothing["precision"] == {"5 %": None, "50 %": None}
