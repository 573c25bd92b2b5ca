"""The bootstrap against plain resampling of rows, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeppatch import metrics
from deeppatch.errors import UserError
from deeppatch.metrics import bootstrap

IMAGE = np.array([3, 5, 5, 8, 9, 3, 7, 9, 8, 8, 5, 3])  # rows of five images


def picks(draws: int, images: int, seed: int) -> list[list[int]]:
    """The images of each draw, the estimate first."""
    weights = np.concatenate(list(metrics.weight_blocks(images, draws, seed)))
    return [np.repeat(np.arange(images), row.astype(int)).tolist() for row in weights]


def drawn_rows(draws: int, image: np.ndarray, seed: int = 4) -> list[np.ndarray]:
    """The rows of each draw: those of a drawn image as often as it was drawn."""
    numbers = np.unique(image)
    return [np.concatenate([np.flatnonzero(image == numbers[i]) for i in chosen])
            for chosen in picks(draws, len(numbers), seed)]  # fmt: skip


def test_weights_are_multinomial_and_do_not_depend_on_blocks(monkeypatch):
    whole = np.concatenate(list(metrics.weight_blocks(50, 3000, 1)))
    assert whole.shape == (3001, 50)
    assert (whole[0] == 1).all()
    assert (whole.sum(1) == 50).all()
    assert whole[1:].mean(0) == pytest.approx(np.ones(50), abs=0.1)
    assert whole[1:].var() == pytest.approx(1 - 1 / 50, abs=0.02)
    monkeypatch.setattr(bootstrap, "BLOCK", 50 * 7)
    blocks = list(metrics.weight_blocks(50, 3000, 1))
    assert max(map(len, blocks)) == 8, "seven draws, and the estimate before them"
    assert (np.concatenate(blocks) == whole).all()
    assert not (np.concatenate(list(metrics.weight_blocks(50, 3000, 2)))[1:] == whole[1:]).all()


def test_sums_are_those_of_resampled_rows():
    values = np.random.default_rng(0).integers(0, 9, (12, 3)).astype(float)
    _, index = np.unique(IMAGE, return_inverse=True)
    found = metrics.resampled_sums(metrics.image_sums(values, index, 5), 20, 4)
    assert found.tolist() == [values[rows].sum(0).tolist() for rows in drawn_rows(20, IMAGE)]


def test_means_and_ece_are_those_of_resampled_rows():
    generator = np.random.default_rng(1)
    sure = {name: generator.uniform(0.3, 1, 12) for name in "ab"}
    right = {name: generator.random(12) < 0.6 for name in "ab"}
    means = metrics.resampled_means(sure, IMAGE, 20, 4)
    for binning in metrics.BINNINGS:
        ece = metrics.resampled_ece(sure, right, IMAGE, binning, 20, 4)
        for name in "ab":
            assert ece[name][0] == pytest.approx(
                metrics.calibration_error(sure[name], right[name], binning).ece, rel=1e-5
            )
            member = metrics.bin_of(sure[name], binning)
            for place, rows in enumerate(drawn_rows(20, IMAGE)):
                assert means[name][place] == pytest.approx(sure[name][rows].mean(), rel=1e-5)
                gaps = [(right[name][rows] * 1.0 - sure[name][rows])[member[rows] == m].sum() for m in range(15)]
                assert ece[name][place] == pytest.approx(np.abs(gaps).sum() / len(rows), rel=1e-4, abs=1e-6)


def test_intervals_are_percentiles_of_defined_draws():
    samples = np.r_[7.0, np.random.default_rng(0).normal(size=999)]
    found = metrics.interval_of(samples)
    assert (found.estimate, found.low, found.high) == pytest.approx((7, *np.percentile(samples[1:], [2.5, 97.5])))
    gaps = np.r_[samples, [np.nan] * 5]
    assert metrics.interval_of(gaps) == found
    assert math.isnan(metrics.interval_of(np.r_[np.nan, samples]).low)
    with pytest.raises(UserError, match="no images"):
        metrics.resampled_means({}, np.array([]))


def simulated(generator: np.random.Generator, images: int, copies: int, sets: int) -> np.ndarray:
    """Changes summed over the copies of an image, for many data sets (images, sets); copies resemble each other."""
    difficulty = generator.random((images, sets, 1))
    before, after = (
        generator.random((images, sets, copies)) < np.clip(shift + difficulty, 0, 1) for shift in (-0.2, 0.1)
    )
    return (after * 1.0 - before).sum(2)


@pytest.mark.parametrize(("images", "copies"), [(250, 1), (150, 4)])
def test_intervals_of_simulated_pairs_hold_the_truth_in_95_of_100(images, copies):
    generator = np.random.default_rng(3)
    truth = simulated(generator, 100_000, 1, 1).mean()
    changes = simulated(generator, images, copies, 1500)
    samples = metrics.resampled_sums(changes, 1000) / (images * copies)
    low, high = np.percentile(samples[1:], [2.5, 97.5], axis=0)
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97


def test_copies_of_an_image_are_not_more_images():
    changes = np.random.default_rng(0).normal(size=(80, 1))
    one = metrics.resampled_means({"a": changes[:, 0]}, np.arange(80), 800)["a"]
    four = metrics.resampled_means({"a": np.tile(changes[:, 0], 4)}, np.tile(np.arange(80), 4), 800)["a"]
    assert four == pytest.approx(one, abs=1e-5)


def test_p_is_near_1_where_as_many_are_repaired_as_broken_and_small_where_not():
    changes = np.r_[np.ones(20), -np.ones(20), np.zeros(160)]
    assert metrics.two_sided_p(metrics.resampled_means({"a": changes}, np.arange(200), 2000)["a"]) > 0.9
    assert metrics.two_sided_p(np.zeros(100)) == 1
    changes[20:38] = 0
    assert metrics.two_sided_p(metrics.resampled_means({"a": changes}, np.arange(200), 2000)["a"]) < 0.01
    shifted = np.r_[0.0, np.arange(-5, 995)]
    assert metrics.two_sided_p(shifted) == pytest.approx(2 * 7 / 1001), "five below 0, one at 0, one added"


def test_seeds_are_resampled_before_images():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(4001, 4)) * 0.1 + np.array([0.0, 1.0, 2.0, 5.0])
    found = metrics.over_seeds_and_images(samples)
    assert found[0] == pytest.approx(samples[0].mean())
    assert found[1:].var() == pytest.approx(samples.mean(0).var() / 4 + 0.01 / 4, rel=0.1)
    for place in (1, 2, 3):
        sums = {round(sum(chosen) / 4, 9) for chosen in _with_repetition(samples[place].tolist())}
        assert round(float(found[place]), 9) in sums
    assert metrics.over_seeds_and_images(samples[:, :1]) == pytest.approx(samples[:, 0])


def _with_repetition(values: list[float]) -> list[tuple[float, ...]]:
    return [(a, b, c, d) for a in values for b in values for c in values for d in values]
