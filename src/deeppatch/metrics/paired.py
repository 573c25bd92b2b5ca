"""Accuracies and changes of several networks on several views of the same images, bootstrapped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeppatch.errors import UserError
from deeppatch.metrics.bootstrap import DRAWS, SEED, image_sums, interval_of, resampled_sums
from deeppatch.metrics.changes import Array
from deeppatch.metrics.intervals import CONFIDENCE, Interval
from deeppatch.metrics.significance import upper_share

MEASURES = (
    "accuracy", "change", "repair", "break", "repair_rate", "negative_flip_rate", "backward_trust", "backward_error",
    "corruption_error",
)  # fmt: skip


@dataclass(frozen=True)
class PairedSamples:
    """Weighted counts of every draw: rows, correct ones, and those that are correct as by the base too.

    Args:
        base: The network to compare with, which is one of `networks`.
        networks: The names of the networks.
        views: The names of the views.
        images: The number of different images of each view.
        rows: Rows of each view, float32 (draws + 1, views); index 0 is the estimate, each image once.
        correct: Those that are classified correctly, float32 (draws + 1, networks, views); nan where a network was not
            measured on a view.
        both: Those that this network and the base classify correctly, of the same shape; nan where one of the two was
            not measured.
    """

    base: str
    networks: tuple[str, ...]
    views: tuple[str, ...]
    images: tuple[int, ...]
    rows: np.ndarray
    correct: np.ndarray
    both: np.ndarray

    def samples(self, measure: str, network: str, views: Sequence[str]) -> np.ndarray:
        """Return samples (draws + 1,) of a measure, in percent or points, over one or several views.

        They are nan where the network, or the base for a measure against it, was not measured on all views. Shares of
        several views are averaged, each view counting the same, before they are divided by each other, so that accuracy
        = accuracy of the base + RR (100 - accuracy of the base) / 100 - NFR holds of every sample. Means or differences
        of samples are samples again, as for mCE, the mean over types of `corruption_error`; `interval_of` makes
        intervals of them.

        Args:
            measure: One of `MEASURES`; all but accuracy are against the base.
            network: The network.
            views: The views, at least one.

        Raises:
            UserError: When a measure, network or view is unknown.
        """
        if measure not in MEASURES:
            raise UserError(f"measure={measure!r}: choose one of {', '.join(MEASURES)}")
        now, was = self._share(self.correct, network, views), self._share(self.correct, self.base, views)
        both = self._share(self.both, network, views)
        repaired, broken = now - both, was - both
        with np.errstate(divide="ignore", invalid="ignore"):
            if measure == "backward_error":
                wrong = 1 - now  # the errors after: old ones, and those that are new
                return 100 * np.where(wrong <= 1e-12, 1.0, (wrong - broken) / wrong)
            found = {
                "accuracy": lambda: now,
                "change": lambda: now - was,
                "repair": lambda: repaired,
                "break": lambda: broken,
                "negative_flip_rate": lambda: broken,
                "repair_rate": lambda: np.where(was < 1 - 1e-12, repaired / (1 - was), np.nan),
                "backward_trust": lambda: np.where(was > 1e-12, both / was, np.nan),
                "corruption_error": lambda: np.where(was < 1 - 1e-12, (1 - now) / (1 - was), np.nan),
            }
            return 100 * found[measure]()

    def interval(self, measure: str, network: str, views: Sequence[str], confidence: float = CONFIDENCE) -> Interval:
        """Return the estimate and the percentile interval of a measure over views, in percent or points.

        Where all draws agree, as when no image was broken, percentiles would say that none ever will be. Then the
        bounds lie as far away as that of Clopper and Pearson for none of the images, which count once for all views.

        Raises:
            UserError: When a measure, network or view is unknown.
        """
        samples = self.samples(measure, network, views)
        found = interval_of(samples, confidence)
        if found.high - found.low > 1e-9 or np.isnan(found.estimate) or measure == "corruption_error":
            return found
        shares = {
            "repair_rate": 1 - self._share(self.correct, self.base, views)[0],
            "backward_trust": self._share(self.correct, self.base, views)[0],
            "backward_error": 1 - self._share(self.correct, network, views)[0],
        }
        images = max(self.images[self.views.index(view)] for view in views) * shares.get(measure, 1.0)
        reach = 100 * upper_share(0, round(images), (1 + confidence) / 2)
        lowest = -100.0 if measure == "change" else 0.0
        return Interval(found.estimate, max(lowest, found.low - reach), min(100.0, found.high + reach))

    def _share(self, counts: np.ndarray, network: str, views: Sequence[str]) -> np.ndarray:
        """Return the mean over views of counts per row, float64 (draws + 1,)."""
        unknown = [name for name in (network, *views) if name not in (*self.networks, *self.views)]
        if unknown or not views:
            raise UserError(f"there are no samples of {', '.join(unknown) or 'no view'}")
        index = [self.views.index(view) for view in views]
        chosen = counts[:, self.networks.index(network), index].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may miss all images of a small view
            shares: np.ndarray = (chosen / self.rows[:, index]).mean(1)
        return shares


def paired_samples(
    correct: Mapping[str, Mapping[str, Array]],
    image: Mapping[str, Array],
    base: str,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> PairedSamples:
    """Draw images with all their rows in all views, and count for all networks by the same draws.

    Args:
        correct: Which rows of each view a network classifies correctly, bool (N,), by network and view. A network that
            was not measured on a view has none there, and nan as its samples.
        image: The number of the image that each row of a view shows, int (N,), by view; the same image has the same
            number in all views.
        base: The network to compare with.
        draws: The number of draws, B.
        seed: The seed of the draws.

    Raises:
        UserError: When the base is missing, or a network was measured on other rows than `image` has.

    >>> right = {"old": {"clean": np.arange(100) < 60}, "new": {"clean": np.arange(100) < 80}}
    >>> found = paired_samples(right, {"clean": np.arange(100)}, "old", draws=200)
    >>> round(found.interval("repair_rate", "new", ["clean"]).estimate, 6)
    50.0
    """
    if base not in correct:
        raise UserError(f"base={base!r}: there are the networks {', '.join(correct) or '(none)'}")
    for network, rows in correct.items():
        for view in rows:
            if view not in image or np.shape(rows[view]) != np.shape(image[view]):
                raise UserError(f"{network} was measured on other rows of view {view} than those that image has")
    numbers = np.unique(np.concatenate([np.asarray(each) for each in image.values()]))
    columns, counts = [], []
    for view, number in image.items():
        index = np.searchsorted(numbers, np.asarray(number))
        nothing = np.zeros(len(index), dtype=bool)
        own = np.stack([np.asarray(rows.get(view, nothing), dtype=bool) for rows in correct.values()], axis=1)
        both = own & np.asarray(correct[base].get(view, nothing), dtype=bool)[:, None]
        columns.append(image_sums(np.concatenate([own, both], axis=1), index, len(numbers)).astype(np.float32))
        counts.append(np.bincount(index, minlength=len(numbers)))
    rows_table, view_column = np.unique(np.stack(counts), axis=0, return_inverse=True)  # views share their images
    sums = resampled_sums(np.concatenate([rows_table.T.astype(np.float32), *columns], axis=1), draws, seed)
    parts = sums[:, len(rows_table) :].reshape(draws + 1, len(image), 2, len(correct)).transpose(2, 0, 3, 1)
    for place, view in enumerate(image):
        absent = [network for network, name in enumerate(correct) if view not in correct[name]]
        parts[:, :, absent, place] = np.nan
        if view not in correct[base]:
            parts[1, :, :, place] = np.nan
    images = tuple(int((each > 0).sum()) for each in counts)
    return PairedSamples(base, tuple(correct), tuple(image), images, sums[:, view_column.ravel()], parts[0], parts[1])
