"""Thresholds that keep bounds on newly wrong answers, against trying every one, and on images not seen before."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeppatch.metrics import Bound, joint_threshold, upper_bound


def draw_bound(draw: np.random.Generator, most: float) -> Bound:
    count = int(draw.integers(20, 150))
    return Bound(np.round(draw.normal(0, 2, count), 1), draw.random(count) < draw.uniform(0, 0.3), most)


@pytest.mark.parametrize("seed", range(25))
def test_the_joint_threshold_is_the_last_of_a_fixed_sequence_that_keeps_every_bound(seed):
    draw = np.random.default_rng(seed)
    bounds = [draw_bound(draw, float(draw.uniform(0.02, 0.3))) for _ in range(1 + seed % 3)]
    no_loss = any(upper_bound(1, len(bound.scores)) > bound.most for bound in bounds)
    candidates = sorted({-math.inf, 0.0, *np.concatenate([bound.scores for bound in bounds])}, reverse=True)
    want = None
    for threshold in candidates:  # the strictest first
        if no_loss and threshold < 0:
            break
        broken = [int((bound.broken & (bound.scores > threshold)).sum()) for bound in bounds]
        kept = [
            upper_bound(found, len(bound.scores)) <= max(bound.most, upper_bound(0, len(bound.scores)))
            for found, bound in zip(broken, bounds, strict=True)
        ]
        if not all(kept):
            break
        want = broken
    found = joint_threshold(*bounds)
    assert [bound.broken_above(found) for bound in bounds] == want
    lower = [value for value in candidates if value < found and not (no_loss and value < 0)]
    assert all(
        any(
            upper_bound(bound.broken_above(value), len(bound.scores))
            > max(bound.most, upper_bound(0, len(bound.scores)))
            for bound in bounds
        )
        for value in lower
    )


def test_a_wider_bound_switches_more_and_the_widest_everything():
    draw = np.random.default_rng(3)
    scores = draw.normal(0, 2, 400)
    broken = draw.random(400) < 0.1
    found = [joint_threshold(Bound(scores, broken, most)) for most in (0.01, 0.02, 0.03, 0.05, 0.1, 1.0)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 6
    assert found[4] < 0, "what looks clean switches where so many may be lost"
    assert found[5] == -math.inf


def test_two_bounds_hold_together_on_what_was_not_seen():
    """Both true rates are known: of 500 draws at most about one in twenty breaks either."""
    draw = np.random.default_rng(8)
    wrong = 0
    for _ in range(500):
        clean, mixed = draw.uniform(-2, 2, 200), draw.uniform(-2, 2, 200)
        bounds = Bound(clean, draw.random(200) < 0.1, 0.05), Bound(mixed, draw.random(200) < 0.3, 0.1)
        share = min(1.0, (2 - joint_threshold(*bounds)) / 4)
        wrong += 0.1 * share > 0.05 or 0.3 * share > 0.1
    assert 0 < wrong / 500 < 0.05 + 0.03
