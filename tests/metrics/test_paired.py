"""Bootstrapped measures of several networks and views against the plain measures of resampled rows."""

from __future__ import annotations

import numpy as np
import pytest

from deeppatch import metrics
from deeppatch.errors import UserError
from deeppatch.metrics.paired import MEASURES

# ten images; one view shows each once, one in another order, one only some and those twice
IMAGES = {"clean": np.arange(10), "fog": np.arange(10)[::-1], "some": np.array([1, 4, 7, 4, 1, 7])}
NETWORKS = ("old", "new", "other")


@pytest.fixture(scope="module")
def correct() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    return {name: {view: generator.random(len(image)) < 0.6 for view, image in IMAGES.items()} for name in NETWORKS}


def rows_of_draws(draws: int) -> list[dict[str, np.ndarray]]:
    weights = np.concatenate(list(metrics.weight_blocks(10, draws, 5))).astype(int)
    return [{view: np.repeat(np.arange(len(image)), each[image]) for view, image in IMAGES.items()} for each in weights]


@pytest.mark.parametrize("views", [("clean",), ("some",), ("clean", "fog")])
def test_samples_are_the_measures_of_resampled_rows(correct, views):
    found = metrics.paired_samples(correct, IMAGES, "old", draws=25, seed=5)
    table = {measure: found.samples(measure, "new", views) for measure in MEASURES}
    for place, rows in enumerate(rows_of_draws(25)):
        before, after = (np.concatenate([correct[name][view][rows[view]] for view in views]) for name in ("old", "new"))
        if not len(before):
            assert all(np.isnan(each[place]) for each in table.values())
            continue
        plain = metrics.count_changes(after, before)
        wrong_after = 100 - plain.accuracy_after
        expected = {
            "accuracy": plain.accuracy_after, "change": plain.accuracy_after - plain.accuracy_before,
            "repair": 100 * plain.repaired / plain.images, "break": plain.negative_flip_rate,
            "repair_rate": plain.repair_rate, "negative_flip_rate": plain.negative_flip_rate,
            "backward_trust": plain.backward_trust, "backward_error": plain.backward_error,
            "corruption_error": 100 * wrong_after / (100 - plain.accuracy_before) if plain.wrong else np.nan,
        }  # fmt: skip
        assert {name: each[place] for name, each in table.items()} == pytest.approx(expected, nan_ok=True)


def test_views_of_other_sizes_count_the_same_and_the_identity_holds_of_every_draw(correct):
    found = metrics.paired_samples(correct, IMAGES, "old", draws=40)
    views = ("clean", "some")
    was, now = (found.samples("accuracy", name, views) for name in ("old", "other"))
    single = [found.samples("accuracy", "other", [view]) for view in views]
    assert now == pytest.approx(np.mean(single, axis=0), nan_ok=True)
    rate, flips = (found.samples(name, "other", views) for name in ("repair_rate", "negative_flip_rate"))
    assert now == pytest.approx(was + rate * (100 - was) / 100 - flips, nan_ok=True)
    assert now[0] == pytest.approx(np.mean([100 * correct["other"][view].mean() for view in views]))
    assert (found.samples("change", "old", views)[[0]] == 0).all()


def test_what_is_missing_is_named(correct):
    found = metrics.paired_samples(correct, IMAGES, "old", draws=2)
    with pytest.raises(UserError, match="choose one of accuracy"):
        found.samples("acc", "new", ["clean"])
    with pytest.raises(UserError, match="samples of snow"):
        found.samples("accuracy", "new", ["snow"])
    with pytest.raises(UserError, match="no view"):
        found.samples("accuracy", "new", [])
    with pytest.raises(UserError, match="old, new, other"):
        metrics.paired_samples(correct, IMAGES, "base")
    with pytest.raises(UserError, match="new was measured on other rows of view clean"):
        metrics.paired_samples({**correct, "new": {"clean": np.ones(3, bool)}}, IMAGES, "old")
    with pytest.raises(UserError, match="other rows of view snow"):
        metrics.paired_samples({**correct, "new": {"snow": np.ones(3, bool)}}, IMAGES, "old")


def test_a_view_on_which_a_network_was_not_measured_is_nan(correct):
    some = {**correct, "new": {"clean": correct["new"]["clean"]}, "old": {"clean": correct["old"]["clean"]}}
    found, whole = (metrics.paired_samples(each, IMAGES, "old", draws=30) for each in (some, correct))
    for measure in MEASURES:
        assert np.isnan(found.samples(measure, "new", ["clean", "fog"])).all()
        own, want = (each.samples(measure, "new", ["clean"]) for each in (found, whole))
        assert own == pytest.approx(want, nan_ok=True)
        own, want = (each.samples(measure, "other", ["fog"]) for each in (found, whole))
        if measure == "accuracy":
            assert own == pytest.approx(want)
        else:
            assert np.isnan(own).all(), "the base was not measured there"
    assert np.isnan(found.interval("change", "other", ["fog"]).low)


def test_intervals_are_percentiles_and_never_empty():
    images, before = np.arange(200), np.arange(200) < 160
    after = before.copy()
    after[150:160] = False
    correct = {"old": {"clean": before}, "worse": {"clean": after}, "same": {"clean": before}}
    found = metrics.paired_samples(correct, {"clean": images}, "old", draws=400)
    for measure in ("accuracy", "change", "break", "backward_trust", "backward_error"):
        assert found.interval(measure, "worse", ["clean"], 0.9) == metrics.interval_of(
            found.samples(measure, "worse", ["clean"]), 0.9
        )
    most = 100 * metrics.upper_share(0, 200, 0.975)
    for measure in ("repair", "break", "negative_flip_rate"):
        own = found.interval(measure, "same", ["clean"])
        assert (own.estimate, own.low, own.high) == pytest.approx((0, 0, most))
    own = found.interval("change", "same", ["clean"])
    assert (own.low, own.high) == pytest.approx((-most, most))
    own = found.interval("repair_rate", "same", ["clean"])
    assert (own.low, own.high) == pytest.approx((0, 100 * metrics.upper_share(0, 40, 0.975)))
    own = found.interval("backward_trust", "same", ["clean"])
    assert (own.low, own.high) == pytest.approx((100 - 100 * metrics.upper_share(0, 160, 0.975), 100))
    own = found.interval("backward_error", "same", ["clean"])
    assert (own.low, own.high) == pytest.approx((100 - 100 * metrics.upper_share(0, 40, 0.975), 100))
    twice = {name: {"both": np.tile(rows["clean"], 2)} for name, rows in correct.items()}
    copies = metrics.paired_samples(twice, {"both": np.tile(images, 2)}, "old", draws=400)
    assert copies.interval("break", "same", ["both"]).high == pytest.approx(most), "copies are not more images"
