"""Errors over corruptions against the formulas in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeppatch import metrics
from deeppatch.errors import UserError

OWN = {"fog": [0.1, 0.2, 0.4], "snow": [0.3, 0.3, 0.5]}
BASE = {"fog": [0.2, 0.4, 0.6], "snow": [0.3, 0.5, 0.9], "frost": [0.5, 0.5, 0.5]}


def test_mce_is_a_mean_of_ratios_of_sums():
    found = metrics.corruption_error(OWN, BASE)
    ratios = {name: 100 * sum(OWN[name]) / sum(BASE[name]) for name in OWN}
    assert found.by_type == pytest.approx(ratios)
    assert found.mean == pytest.approx(sum(ratios.values()) / 2)
    assert found.undefined == ()
    assert metrics.corruption_error(BASE, BASE).mean == pytest.approx(100), "the base itself"
    means = {name: float(np.mean(each)) for name, each in BASE.items()}
    assert metrics.corruption_error(OWN, means).mean == pytest.approx(found.mean)


def test_relative_mce_takes_clean_errors_off():
    found = metrics.relative_corruption_error(OWN, 0.08, BASE, 0.1)
    ratios = [100 * sum(e - 0.08 for e in OWN[name]) / sum(e - 0.1 for e in BASE[name]) for name in OWN]
    assert list(found.by_type.values()) == pytest.approx(ratios)
    assert found.mean == pytest.approx(sum(ratios) / 2)


@pytest.mark.parametrize("base_clean", [0.4, 0.41])
def test_types_on_which_the_base_loses_nothing_are_named(base_clean):
    found = metrics.relative_corruption_error(OWN, 0.1, BASE, base_clean)
    assert found.undefined == ("fog",)
    assert list(found.by_type) == ["snow"]
    nothing = metrics.corruption_error({"fog": [0.1]}, {"fog": [0.0]})
    assert nothing.undefined == ("fog",)
    assert math.isnan(nothing.mean)


def test_mean_corruption_error_counts_each_type_the_same():
    assert metrics.mean_corruption_error({"fog": [0.1, 0.3], "snow": 0.5}) == pytest.approx(0.35)
    with pytest.raises(UserError, match="at least one"):
        metrics.mean_corruption_error({})


def test_a_base_of_other_types_or_severities_is_refused():
    with pytest.raises(UserError, match="frost"):
        metrics.corruption_error(BASE, OWN)
    with pytest.raises(UserError, match="fog: the base"):
        metrics.corruption_error({"fog": [0.1]}, BASE)


def test_alexnet_is_100_of_itself_and_has_the_fifteen_types_and_four_more():
    assert len(metrics.ALEXNET) == 19
    assert metrics.corruption_error({"fog": [0.819324]}, metrics.ALEXNET).mean == pytest.approx(100)
    assert min(metrics.ALEXNET.values()) > metrics.ALEXNET_CLEAN
    relative = metrics.relative_corruption_error({"snow": 0.866816}, 0.4348, metrics.ALEXNET, metrics.ALEXNET_CLEAN)
    assert relative.mean == pytest.approx(100)
