"""Routers: features, boundaries and bounds against plain versions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.errors import DataProblem, StaleArtifact
from deeppatch.metrics import Bound, joint_threshold, upper_bound
from deeppatch.patching.fitting import ROUTERS, CalibrationData, fit_flips, fit_probe
from deeppatch.patching.router import FEATURES, Maps, Router, flip_fraction, pooled_statistics

ORIGIN = Path("output/router.safetensors")


def draw_maps(count: int = 5, seed: int = 0, shift: float = 0.2) -> Maps:
    """Maps of 3 channels, 6x7, whose versions are alike, and pixels of 9x8."""
    draw = torch.Generator().manual_seed(seed)
    original = torch.randn(count, 3, 6, 7, generator=draw)
    replaced = original + shift * torch.randn(count, 3, 6, 7, generator=draw)
    return Maps(torch.rand(count, 3, 9, 8, generator=draw), original, replaced)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def test_flipped_share_counts_entries_that_are_active_in_one_version():
    maps = draw_maps()
    expected = []
    for original, replaced in zip(maps.original.tolist(), maps.replaced.tolist(), strict=True):
        pairs = [
            (a, b)
            for plane, other in zip(original, replaced, strict=True)
            for row, row_b in zip(plane, other, strict=True)
            for a, b in zip(row, row_b, strict=True)
        ]
        expected.append(sum((a > 0) != (b > 0) for a, b in pairs) / len(pairs))
    found = flip_fraction(maps)
    assert found.shape == (5, 1)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 2


def test_flipped_share_of_zero_is_inactive():
    original, replaced = torch.tensor([0.0, 0.0, 0.0, -1.0]), torch.tensor([1.0, -1.0, -1.0, 0.0])
    maps = Maps(torch.rand(1, 3, 4, 4), original.view(1, 1, 2, 2), replaced.view(1, 1, 2, 2))
    assert flip_fraction(maps).item() == 0.25


def test_pooled_statistics_equal_plain_loops():
    maps = draw_maps()
    found = pooled_statistics(maps)
    assert found.shape == (5, 6 * 3 + 3)
    for image in range(5):
        expected = []
        for version in (maps.original, maps.replaced):
            planes = [plane.flatten().tolist() for plane in version[image]]
            expected += [mean([max(value, 0.0) for value in plane]) for plane in planes]
            expected += [deviation(plane) for plane in planes]
            expected += [mean([abs(value) for value in plane]) for plane in planes]
        curvature = [
            abs(plane[y - 1][x] + plane[y + 1][x] + plane[y][x - 1] + plane[y][x + 1] - 4 * plane[y][x])
            for plane in maps.pixels[image].tolist()
            for y in range(1, 8)
            for x in range(1, 7)
        ]
        spread = deviation(maps.pixels[image].flatten().tolist())
        expected += [mean(curvature), mean(curvature) / (spread + 1e-6), spread]
        assert found[image].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_features_of_a_sample_do_not_depend_on_its_neighbours():
    maps = draw_maps()
    for features in FEATURES.values():
        whole = features(maps)
        alone = [
            features(Maps(maps.pixels[i : i + 1], maps.original[i : i + 1], maps.replaced[i : i + 1])) for i in range(5)
        ]
        torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-5, atol=1e-6)


def test_flat_images_have_finite_features():
    flat = Maps(torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))
    assert pooled_statistics(flat).isfinite().all()


# of 100 images: no loss bounds 2.95 %, one 4.66 %, two 6.16 %
LOSING = [5.0, 4.0, 3.0, -1.0]


def loosest_threshold(scores: np.ndarray, lost: np.ndarray, max_drop: float) -> tuple[float, int, float]:
    """Return the threshold for one bound, the number of lost images above it, and the bound on their share."""
    bound = Bound(scores, lost, max_drop)
    threshold = joint_threshold(bound)
    losses = bound.broken_above(threshold)
    return threshold, losses, upper_bound(losses, len(scores))


@pytest.mark.parametrize(
    ("max_drop", "threshold", "losses"),
    [
        (0.02, 5.0, 0),  # not to be shown with 100 images: no loss is allowed
        (0.0, 5.0, 0),
        (0.03, 5.0, 0),
        (0.0465, 5.0, 0),
        (0.047, 4.0, 1),
        (0.05, 4.0, 1),
        (0.0616, 4.0, 1),
        (0.062, 3.0, 2),
        (0.08, -1.0, 3),  # the fourth loss looks more clean than degraded, and its bound is not kept
        (1.0, -math.inf, 4),  # everything may switch
    ],
)
def test_loosest_threshold_on_hand_made_scores(max_drop, threshold, losses):
    scores = np.r_[LOSING, np.linspace(-4, 6, 96)]
    lost = np.arange(100) < len(LOSING)
    places = np.random.default_rng(0).permutation(100)
    found = loosest_threshold(scores[places], lost[places], max_drop)
    assert found == (threshold, losses, pytest.approx(upper_bound(losses, 100)))
    assert ((scores > found[0]) & lost).sum() == losses


def test_without_a_loss_that_is_allowed_what_looks_clean_never_switches():
    scores = np.array([3.0, -2.0, -5.0, 1.0])
    nothing = np.zeros(4, dtype=bool)
    assert loosest_threshold(scores, nothing, 0.001) == (0.0, 0, upper_bound(0, 4))
    assert loosest_threshold(scores, scores < 0, 0.001) == (0.0, 0, upper_bound(0, 4))
    assert loosest_threshold(scores, nothing, 1.0) == (-math.inf, 0, upper_bound(0, 4))


def test_equal_scores_switch_together_or_not_at_all():
    scores = np.r_[5.0, 5.0, 3.0, np.full(97, -1.0)]
    assert loosest_threshold(scores, scores > 0, 0.05) == (5.0, 0, upper_bound(0, 100)), "one of two cannot be let in"
    scores = np.r_[5.0, 3.0, 3.0, np.full(97, -1.0)]
    assert loosest_threshold(scores, scores > 0, 0.062) == (3.0, 1, upper_bound(1, 100))


@pytest.mark.parametrize("seed", range(20))
def test_loosest_threshold_is_the_lowest_that_holds(seed):
    """Try every threshold that could matter, as the docstring says, from the strictest on."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(20, 200))
    scores = np.round(draw.normal(0, 2, count), 1)
    lost = draw.random(count) < draw.uniform(0, 0.3)
    max_drop = float(draw.uniform(0, 0.2))
    found = loosest_threshold(scores, lost, max_drop)

    shown = upper_bound(1, count) <= max_drop  # else no loss is allowed, and what looks clean stays
    candidates = {-math.inf, *scores} if shown else {0.0, *scores[scores > 0]}
    best = None
    for threshold in sorted(candidates, reverse=True):
        losses = int((lost & (scores > threshold)).sum())
        # where not even no loss can be shown, no loss is allowed
        if upper_bound(losses, count) > max(max_drop, upper_bound(0, count)):
            break
        best = losses
    assert best is not None
    assert found[1:] == (best, upper_bound(best, count))
    assert int((lost & (scores > found[0])).sum()) == best
    # and any lower threshold loses more than is allowed
    lower = [value for value in candidates if value < found[0]]
    assert all(upper_bound(int((lost & (scores > v)).sum()), count) > max_drop for v in lower)
    assert all((lost & (scores > v)).sum() > 0 for v in lower)


def test_bound_holds_for_the_rate_of_loss_behind_the_threshold():
    """Calibrate on many samples of 200: the true rate exceeds the stated bound in about one of twenty."""
    draw = np.random.default_rng(1)
    exceeded = 0
    for _ in range(600):
        scores, lost = draw.random(200) * 5, draw.random(200) < 0.2
        threshold, _, bound = loosest_threshold(scores, lost, 0.05)
        exceeded += 0.2 * (1 - threshold / 5) > bound
    assert exceeded / 600 < 0.08


def evidence(
    seed: int = 0, images: int = 60, kind: str = "probe", shift: float = 0.6, dim: float = 0.7
) -> tuple[CalibrationData, Maps]:
    """Clean and twice degraded (brighter maps, dimmer pixels) images; half of the clean ones are lost when patched."""
    clean, degraded = draw_maps(images, seed, 0.3), draw_maps(2 * images, seed + 1, 0.3)
    degraded = Maps(degraded.pixels * dim, degraded.original, degraded.replaced + shift)
    maps = Maps(*(torch.cat([getattr(m, f) for m in (clean, degraded)]) for f in ("pixels", "original", "replaced")))
    features = FEATURES[kind](maps).double().numpy()
    image = np.tile(np.arange(images), 3)
    lost = np.random.default_rng(seed).random(images) < 0.5
    return CalibrationData(features, image, np.arange(3 * images) >= images, lost), maps


@pytest.mark.parametrize(
    ("clean", "degraded", "side"), [((0.1, 0.3), (0.5, 0.7, 0.9), 1), ((0.8, 0.9), (0.3, 0.5), -1)]
)
def test_flips_boundary_is_the_midpoint_and_the_side_is_recorded(clean, degraded, side):
    d = np.array([*clean, *degraded]).reshape(-1, 1)
    router, facts = fit_flips(
        CalibrationData(d, np.arange(len(d)), np.arange(len(d)) >= len(clean), np.zeros(len(clean), dtype=bool)), 0.001
    )
    boundary = (mean(list(clean)) + mean(list(degraded))) / 2
    assert facts == {
        "mean_d_clean": pytest.approx(mean(list(clean))), "mean_d_degraded": pytest.approx(mean(list(degraded))),
        "boundary": pytest.approx(boundary), "degraded_side": side,
    }  # fmt: skip
    # a map with a share of flips just on either side
    for share in (boundary - 0.02, boundary + 0.02):
        entries = torch.arange(400) < round(share * 400)
        maps = Maps(
            torch.rand(1, 3, 4, 4), torch.where(entries, 1.0, -1.0).view(1, 1, 20, 20), -torch.ones(1, 1, 20, 20)
        )
        assert bool(router(maps) > router.threshold) == ((share > boundary) == (side > 0))


@pytest.mark.parametrize("seed", [0, 1])
def test_probe_equals_the_decision_function_of_scikit_learn(seed):
    found, maps = evidence(seed)
    router, _ = fit_probe(found, 0.05)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    pipeline.fit(found.features, found.degraded)
    expected = pipeline.decision_function(found.features)
    scores = router(maps)
    assert scores.shape == (180,)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-9)
    assert np.ptp(expected) > 1


def test_probe_balances_the_classes():
    """There are six degraded versions of an image: without balance nearly everything would look degraded."""
    found, maps = evidence(shift=0.0, dim=1.0)
    scores = fit_probe(found, 0.05)[0](maps).numpy()
    assert (scores[~found.degraded] < 0).mean() > 0.4
    assert (scores[found.degraded] > 0).mean() > 0.4


def test_probe_threshold_is_that_of_scores_held_out_by_image():
    found, _ = evidence(shift=0.03, dim=1.0)
    router, facts = fit_probe(found, 0.1)
    held_out = np.full(180, np.nan)
    for train, test in GroupKFold(5).split(found.features, found.degraded, found.image):
        assert not set(found.image[train]) & set(found.image[test])
        scaler = StandardScaler().fit(found.features[train])
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        model.fit(scaler.transform(found.features[train]), found.degraded[train])
        held_out[test] = model.decision_function(scaler.transform(found.features[test]))
    threshold, losses, bound = loosest_threshold(held_out[:60], found.lost, 0.1)
    assert threshold > 0, "the case says nothing"
    assert router.threshold.item() == pytest.approx(threshold)
    assert facts == {
        "threshold": pytest.approx(threshold), "clean_images": 60, "clean_losses": losses, "clean_drop_bound": bound,
        "max_clean_drop": 0.1, "bound_attained": bound <= 0.1, "smallest_bound": upper_bound(0, 60),
    }  # fmt: skip
    assert facts["bound_attained"]


def test_probe_says_when_the_images_are_too_few_for_the_bound():
    found, _ = evidence(shift=0.15, dim=1.0)
    _, facts = fit_probe(found, 0.001)
    assert facts["bound_attained"] is False
    assert facts["clean_losses"] == 0
    assert facts["clean_drop_bound"] == facts["smallest_bound"] == upper_bound(0, 60) > 0.001


def test_a_single_val_image_cannot_calibrate_a_probe():
    found, _ = evidence(images=1)
    with pytest.raises(DataProblem, match="val holds a single image, too few for calibration"):
        fit_probe(found, 0.01)


def test_probe_is_deterministic():
    torch.manual_seed(1)
    first = fit_probe(evidence()[0], 0.05)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    second = fit_probe(evidence()[0], 0.05)
    assert first[0].to_bytes() == second[0].to_bytes()
    assert first[1] == second[1]
    assert fit_probe(evidence(5)[0], 0.05)[0].to_bytes() != first[0].to_bytes()


@pytest.mark.parametrize("kind", ["probe", "flips"])
def test_router_survives_its_bytes(kind):
    found, maps = evidence(kind=kind)
    router, _ = ROUTERS[kind](found, 0.05)
    again = Router.from_bytes(router.to_bytes(), ORIGIN)
    assert again.kind == kind
    assert torch.equal(again(maps), router(maps))
    assert again.threshold == router.threshold
    assert again.threshold.dtype == again.weight.dtype == torch.float64
    assert again.to_bytes() == router.to_bytes()


def test_damaged_router_is_refused():
    content = Router("probe", torch.ones(9), 0.5, 1.0).to_bytes()
    for broken in (content[:-1], content[:20], b"", b"text", tensors_to_bytes({"weight": torch.ones(1)}),
                   tensors_to_bytes({"weight": torch.ones(1)}, {"router": "unheard-of"})):  # fmt: skip
        with pytest.raises(StaleArtifact, match="router.safetensors"):
            Router.from_bytes(broken, ORIGIN)


def test_maps_of_one_pixel_have_finite_statistics():
    """Squeeze-and-excitation and late layers of small images: a single value has no spread."""
    maps = Maps(torch.rand(4, 3, 9, 9), torch.randn(4, 5, 1, 1), torch.randn(4, 5, 1, 1))
    features = FEATURES["probe"](maps)
    assert features.isfinite().all()
    assert not features[:, 5:10].any()
