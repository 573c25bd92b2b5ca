"""The paired cluster bootstrap: images are drawn with all their rows, and all networks and views with the same images.

Every function draws the same images for the same seed, number of draws and number of images, so that their samples may
be combined draw by draw. Samples (draws + 1,) begin with the estimate, in which each image counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from deeppatch.errors import UserError, check_positive
from deeppatch.metrics.calibration import BINS, bin_of
from deeppatch.metrics.changes import Array
from deeppatch.metrics.intervals import CONFIDENCE, Interval

DRAWS = 10_000
SEED = 2021
BLOCK = 2**22  # weights that are held at a time


def weight_blocks(images: int, draws: int = DRAWS, seed: int = SEED) -> Iterator[np.ndarray]:
    """Yield how often each image is drawn, float32 (block, images), in blocks of bounded memory.

    Each row sums to `images`: it is multinomial with equal chances. The first row of all has each image once.

    Args:
        images: The number of images.
        draws: The number of draws, B.
        seed: The seed.

    >>> first, *_ = weight_blocks(4, draws=3)
    >>> first.shape, first[0].tolist(), first.sum(1).tolist()
    ((4, 4), [1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0])
    """
    check_positive(images=images, draws=draws)
    generator, size = np.random.default_rng([seed, images]), max(1, BLOCK // images)
    for start in range(0, draws, size):
        count = min(size, draws - start)
        index = generator.integers(0, images, (count, images), dtype=np.uint32)
        flat = index.astype(np.int64)
        flat += images * np.arange(count)[:, None]
        weights = np.bincount(flat.ravel(), minlength=count * images).reshape(count, images).astype(np.float32)
        yield weights if start else np.concatenate([np.ones((1, images), np.float32), weights])


def image_sums(values: Array, image: Array, images: int) -> np.ndarray:
    """Sum the rows of each image, float64 (images, K), from values (N, K) or (N,) and the index of the image (N,).

    >>> image_sums(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 0]), 2).tolist()
    [[5.0], [2.0]]
    """
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1).T
    return np.stack([np.bincount(image, column, images) for column in columns], axis=1)


def resampled_sums(table: Array, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Return weighted sums of per-image sums, float32 (draws + 1, K), as matrix products in blocks.

    Sums of whole numbers are exact up to 2^24. Any function of sums is bootstrapped by applying it to the rows.

    Args:
        table: Sums over the rows of each image, (images, K).
        draws: The number of draws, B.
        seed: The seed of the draws.

    >>> resampled_sums(np.array([[1.0, 0.0], [1.0, 1.0]]), draws=2)[:, 0].tolist()
    [2.0, 2.0, 2.0]
    """
    narrow = np.ascontiguousarray(table, dtype=np.float32)
    found, start = np.empty((draws + 1, narrow.shape[1]), np.float32), 0
    for weights in weight_blocks(len(narrow), draws, seed):
        np.matmul(weights, narrow, out=found[start : start + len(weights)])
        start += len(weights)
    return found


def resampled_means(
    values: Mapping[str, Array], image: Array, draws: int = DRAWS, seed: int = SEED
) -> dict[str, np.ndarray]:
    """Return samples (draws + 1,) of means over rows, such as NLL or Brier scores of several networks.

    Args:
        values: The values (N,) of each network.
        image: The number of the image that each row shows, (N,).
        draws: The number of draws, B.
        seed: The seed of the draws.

    >>> resampled_means({"a": np.array([1.0, 3.0])}, np.array([7, 9]), draws=5)["a"][0].item()
    2.0
    """
    index, images = _numbered(image)
    columns = np.stack([np.ones(len(index)), *(np.asarray(each, dtype=np.float64) for each in values.values())], 1)
    found = resampled_sums(image_sums(columns, index, images), draws, seed).astype(np.float64)
    return {name: found[:, place] / found[:, 0] for place, name in enumerate(values, 1)}


def resampled_ece(
    confidence: Mapping[str, Array],
    correct: Mapping[str, Array],
    image: Array,
    binning: str = "width",
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, np.ndarray]:
    """Return samples (draws + 1,) of the ECE of several networks on the same rows.

    The rows keep the bins that they have in the data. A sum of absolute values grows with noise: of a well calibrated
    network most samples lie above the estimate.

    Args:
        confidence: The largest probability of each row, (N,), by network.
        correct: Which rows each network classifies correctly, bool (N,).
        image: The number of the image that each row shows, (N,).
        binning: `width` or `mass`, as in `calibration_error`.
        draws: The number of draws, B.
        seed: The seed of the draws.

    >>> sure = {"a": np.array([0.9, 0.9])}
    >>> round(resampled_ece(sure, {"a": np.array([True, False])}, np.arange(2), draws=5)["a"][0].item(), 3)
    0.4
    """
    index, images = _numbered(image)
    tables: list[np.ndarray] = [np.bincount(index, minlength=images)[:, None].astype(np.float64)]
    for name, sure in confidence.items():
        gaps = np.asarray(correct[name], dtype=np.float64) - np.asarray(sure, dtype=np.float64)
        cells = bin_of(sure, binning) + BINS * index
        tables.append(np.bincount(cells, gaps, BINS * images).reshape(images, BINS))
    found = resampled_sums(np.concatenate(tables, axis=1), draws, seed).astype(np.float64)
    gaps_of = np.abs(found[:, 1:]).reshape(draws + 1, len(confidence), BINS).sum(2) / found[:, :1]
    return {name: gaps_of[:, place] for place, name in enumerate(confidence)}


def interval_of(samples: Array, confidence: float = CONFIDENCE) -> Interval:
    """Return the estimate and the percentile interval of samples (draws + 1,).

    Draws where the measure is undefined are left out; where the estimate is, so are the bounds (nan). A one-sided bound
    of 95 % is one of the two-sided interval of 90 %.

    >>> interval_of(np.array([50.0, *range(101)]))
    Interval(estimate=50.0, low=2.5, high=97.5)
    """
    values = np.asarray(samples, dtype=np.float64)
    defined = values[1:][~np.isnan(values[1:])]
    if math.isnan(values[0]) or not len(defined):
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.percentile(defined, [(100 - 100 * confidence) / 2, (100 + 100 * confidence) / 2])
    return Interval(float(values[0]), float(low), float(high))


def two_sided_p(samples: Array) -> float:
    """Return the two-sided p value of a difference of 0 from samples (draws + 1,) of the difference.

    Twice the share of the draws on the rarer side of 0, those at 0 counted on both; one draw is added to each side, so
    that p is never 0 (Davison and Hinkley, Bootstrap methods and their application, 1997, section 4.2).

    >>> two_sided_p(np.array([2.0, 1.0, 2.0, 3.0]))
    0.5
    """
    drawn = np.asarray(samples)[1:]
    fewer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (1 + fewer) / (1 + len(drawn))))


def over_seeds_and_images(samples: Array, seed: int = SEED) -> np.ndarray:
    """Return samples (draws + 1,) of the mean over seeds, resampling the seeds of a method and then the images.

    Of few seeds a resample shows less spread than there is, by (k - 1) / k in the variance for k seeds; with one seed
    it is the interval over images alone. Give the number of seeds with it.

    Args:
        samples: Samples of a measure for each seed of one method, (draws + 1, seeds), all with the same images.
        seed: The seed of the draws of seeds.

    >>> over_seeds_and_images(np.array([[1.0, 3.0], [1.0, 1.0]])).tolist()
    [2.0, 1.0]
    """
    values = np.asarray(samples, dtype=np.float64)
    draws, seeds = values.shape
    chosen = np.random.default_rng([seed, seeds]).integers(0, seeds, (draws, seeds))
    chosen[0] = np.arange(seeds)
    return np.take_along_axis(values, chosen, axis=1).mean(1)


def _numbered(image: Array) -> tuple[np.ndarray, int]:
    """Return the index of each row's image among the images that there are, and their number."""
    numbers, index = np.unique(np.asarray(image), return_inverse=True)
    if not len(numbers):
        raise UserError("there are no images to draw from")
    return index, len(numbers)
