"""Routers that predict which network is right: on features whose benefit is known, and against plain definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from deeppatch.errors import DataProblem, UserError
from deeppatch.metrics import upper_bound
from deeppatch.patching.fitting import LITTLE, PENALTY, CalibrationData, fit_benefit, fit_flips, fit_probe
from deeppatch.patching.names import READ_ANSWERS, ROUTERS
from deeppatch.patching.observing import mixed_rows
from deeppatch.patching.router import FEATURES, Answers, Maps, Router, answer_statistics, features_of


def known(images: int = 80, networks: int = 1, seed: int = 0) -> CalibrationData:
    """Degraded images on which network k is right where its first feature is positive, and the original where it isn't.

    On clean images the original network is right, and each other one on four of five.
    """
    draw = np.random.default_rng(seed)
    degraded = np.arange(3 * images) >= images
    features = tuple(draw.normal(0, 1, (3 * images, 3)) for _ in range(networks))
    others = [np.where(degraded, each[:, 0] > 0, draw.random(3 * images) < 0.8) for each in features]
    for each in features:
        each[~degraded, 0] -= 2  # clean images look as those that the original network gets right
    original = np.where(degraded, ~np.stack(others).any(0), True)
    right = np.stack([original, *others], 1)
    image = np.tile(np.arange(images), 3)
    lost = (original & ~others[0])[:images]
    mixed = mixed_rows(image, degraded, 1)
    return CalibrationData(features if networks > 1 else features[0], image, degraded, lost, right, mixed)


def plain_benefit(data: CalibrationData, number: int, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fit by the definition in the docstring, and return scores of other rows."""
    features = data.by_network[number - 1]
    wanted, weights = [], []
    for row in rows:
        original, other = data.right[row, 0], data.right[row, number]
        wanted.append(bool(data.degraded[row]) and not (original and not other))
        weights.append(1.0 if original != other else LITTLE)
    wanted, weights = np.array(wanted), np.array(weights)
    total = {side: weights[wanted == side].sum() for side in (True, False)}
    return wanted, weights, total, features


def test_a_benefit_router_equals_its_definition():
    data = known()
    router, facts = fit_benefit(data, 0.1)
    everything = np.arange(len(data.image))
    wanted, weights, total, features = plain_benefit(data, 1, everything, everything)
    balanced = np.array([w / total[side] for w, side in zip(weights, wanted, strict=True)]) * len(wanted) / 2

    def scores(kept: np.ndarray, left: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(features[kept])
        model = LogisticRegression(C=PENALTY, max_iter=2000)
        model.fit(scaler.transform(features[kept]), wanted[kept], sample_weight=balanced[kept])
        return model.decision_function(scaler.transform(features[left]))

    mine = torch.from_numpy(features) @ router.weight + router.bias
    np.testing.assert_allclose(mine.numpy(), scores(everything, everything), atol=1e-6)
    held_out = np.empty(len(wanted))
    for kept, left in GroupKFold(5).split(features, wanted, data.image):
        held_out[left] = scores(kept, left)
    lost = held_out[:80][data.lost]
    allowed = max(count for count in range(80) if upper_bound(count, 80) <= 0.1)
    want = sorted(lost, reverse=True)[allowed] if len(lost) > allowed else -math.inf
    assert router.threshold.item() == pytest.approx(want, abs=1e-6)
    assert facts["clean_losses"] == (lost > router.threshold.item()).sum()


def test_where_the_benefit_is_known_each_sample_goes_to_the_network_that_is_right():
    data = known(300)
    router, _facts = fit_benefit(data, 1.0)
    router.threshold.fill_(0.0)
    moved = (torch.from_numpy(data.features) @ router.weight + router.bias > 0).numpy()
    right = data.right[np.arange(len(moved)), moved.astype(int)]
    assert right[data.degraded].mean() > 0.95
    assert right[~data.degraded].mean() > 0.97
    probe, _facts = fit_probe(data, 1.0)
    moved = (torch.from_numpy(data.features) @ probe.weight + probe.bias > 0).numpy()
    assert data.right[np.arange(len(moved)), moved.astype(int)][data.degraded].mean() < 0.95


def test_of_several_networks_the_one_with_the_highest_score_is_chosen():
    data = known(300, networks=3)
    router, facts = fit_benefit(data, 1.0)
    assert (router.networks, facts["threshold"]) == (3, None)
    features = [torch.from_numpy(each) for each in data.by_network]
    scores = router.all_scores(features)
    for number, each in enumerate(features):
        start = 3 * number
        want = each @ router.weight[start : start + 3] + router.bias[number]
        torch.testing.assert_close(scores[:, number], want)
    best = scores.argmax(1).numpy() + 1
    chosen = data.right[np.arange(len(best)), best]
    possible = data.right[:, 1:].any(1)
    assert chosen[data.degraded & possible].mean() > 0.95
    again = Router.from_bytes(router.to_bytes(), Path("router.safetensors"))
    assert torch.equal(again.all_scores(features), scores)
    assert again.threshold == -math.inf


def test_both_bounds_are_kept_and_told():
    data = known(200, seed=4)
    _router, loose = fit_benefit(data, 0.2, 0.2)
    _router, tight = fit_benefit(data, 0.2, 0.02)
    assert loose["flips_bound"] <= 0.2
    assert tight["flips_bound"] <= 0.02
    assert tight["flips"] <= loose["flips"]
    assert (tight["mixed_images"], tight["max_flips"]) == (200, 0.02)
    assert tight["clean_drop_bound"] <= 0.2
    assert {"flips", "flips_bound"}.isdisjoint(fit_benefit(data, 0.2)[1])
    _router, probe = fit_probe(data, 0.2, 0.02)
    assert probe["flips_bound"] <= 0.02


def test_a_mixed_row_is_clean_with_probability_one_half_and_there_is_one_for_each_image():
    data = known(2000)
    rows = mixed_rows(data.image, data.degraded, 3)
    assert (data.image[rows] == np.arange(2000)).all()
    assert data.degraded[rows].mean() == pytest.approx(0.5, abs=0.05)
    assert (rows >= 4000).sum() == pytest.approx((rows >= 2000).sum() / 2, rel=0.1), "each degraded version"
    assert (mixed_rows(data.image, data.degraded, 3) == rows).all()


@pytest.mark.parametrize("fit", [fit_probe, fit_flips])
def test_what_a_router_cannot_do_is_told(fit):
    with pytest.raises(UserError, match="decides between two networks; choose benefit or benefit-both"):
        fit(known(networks=2), 0.1)
    with pytest.raises(UserError, match="the published boundary, which no bound moves"):
        fit_flips(known(), 0.1, 0.1)
    with pytest.raises(DataProblem, match="do not show when which network is right"):
        fit_benefit(CalibrationData(np.zeros((4, 2)), np.arange(4) % 2, np.zeros(4, bool), np.zeros(4, bool),
                                    np.ones((4, 2), bool)), 0.1)  # fmt: skip


def test_answer_statistics_equal_plain_sums():
    draw = torch.Generator().manual_seed(0)
    one, two = (Answers(3 * torch.randn(4, 5, generator=draw), torch.rand(4, 2, generator=draw)) for _ in range(2))
    found = answer_statistics(one, two)
    assert found.shape == (4, 13 + 4)
    for row in range(4):
        p, q = ([math.exp(v) / sum(map(math.exp, each)) for v in each] for each in
                (one.logits[row].tolist(), two.logits[row].tolist()))  # fmt: skip
        a, b = p.index(max(p)), q.index(max(q))
        gaps = [-(sorted(v)[-1] - sorted(v)[-2]) for v in (one.logits[row].tolist(), two.logits[row].tolist())]
        energies = [math.log(sum(map(math.exp, v))) for v in (one.logits[row].tolist(), two.logits[row].tolist())]
        want = [
            math.log(p[a]), math.log(q[a]), math.log(p[b]), math.log(q[b]),
            -sum(v * math.log(v) for v in p), -sum(v * math.log(v) for v in q), *gaps, *energies, float(a == b),
            sum(u * math.log(u / v) for u, v in zip(p, q, strict=True)),
            sum(v * math.log(v / u) for u, v in zip(p, q, strict=True)),
            *one.features[row].tolist(), *two.features[row].tolist(),
        ]  # fmt: skip
        assert found[row].tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_only_routers_that_read_answers_do():
    assert tuple(FEATURES) == ROUTERS
    maps = Maps(torch.rand(3, 3, 6, 6), torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4))
    answers = [Answers(torch.randn(3, 4), torch.randn(3, 5)) for _ in range(2)]
    for kind in ROUTERS:
        more = features_of(kind, maps, answers).shape[1] - FEATURES[kind](maps).shape[1]
        assert more == (13 + 10 if kind in READ_ANSWERS else 0)


def population(draw: np.random.Generator, images: int) -> CalibrationData:
    """Clean images and a degraded version of each; the second network is better the larger the first feature is."""
    degraded = np.arange(2 * images) >= images
    features = draw.normal(0, 1, (2 * images, 2)) + np.where(degraded, 1.0, 0.0)[:, None]
    original = draw.random(2 * images) < np.where(degraded, 0.4, 0.9)
    other = draw.random(2 * images) < np.where(degraded, 0.7, 0.8)
    image = np.tile(np.arange(images), 2)
    lost = (original & ~other)[:images]
    return CalibrationData(features, image, degraded, lost, np.stack([original, other], 1), np.arange(images))


@pytest.mark.slow
def test_the_bound_of_a_fitted_router_holds_on_images_that_were_not_seen():
    """Of 100 draws of calibration images at most about one in twenty breaks a bound that holds with 95 %."""
    draw = np.random.default_rng(1)
    unseen = population(draw, 20_000)
    wrong = switched = 0
    for _ in range(100):
        router, facts = fit_benefit(population(draw, 80), 0.06)
        scores = unseen.features[~unseen.degraded] @ router.weight.numpy() + router.bias.item()
        moved = scores > router.threshold.item()
        assert facts["bound_attained"]
        wrong += (moved & unseen.lost).mean() > 0.06
        switched += moved.mean()
    assert wrong / 100 < 0.05 + 0.05
    assert switched / 100 > 0.03, "a router that never switches keeps every bound"
