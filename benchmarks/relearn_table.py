"""The table of benchmarks/relearn.py: accuracies, gains and differences of its runs, with their intervals."""

from __future__ import annotations

import machine  # noqa: F401  (puts the package on the path)
import pandas as pd

from deeppatch.metrics import Interval, counted_difference, mean_interval, share_interval, unpaired_difference

START, PRIOR, REFERENCE = "warm start", "prior", "random"


def with_starts(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs behind a row for the warm start of each bias and seed, which changes nothing and buys nothing."""
    trained = runs[runs["row"] != PRIOR] if (runs["row"] != PRIOR).any() else runs
    starts = trained.groupby(["bias", "seed"], as_index=False, sort=False).first()
    nothing = {"row": START, "gained_points": 0.0, "fixed": 0, "broken": 0, "labels": 0, "seconds": float("nan")}
    everything = pd.concat([starts.assign(percent=starts["start_percent"], **nothing), runs])
    place = {bias: index for index, bias in enumerate(runs["bias"].unique())}
    return everything.sort_values("bias", key=lambda column: column.map(place), kind="stable", ignore_index=True)


def table(runs: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Return a row for each bias and way, in the order of the runs, over the seeds; all are compared with one."""
    rows = []
    for (bias, name), own in runs.groupby(["bias", "row"], sort=False):
        others = runs[(runs["bias"] == bias) & (runs["row"] == reference)]
        against = None if name == reference else difference(own, others)
        rows.append(
            {
                "bias": bias,
                "row": name,
                "seeds": len(own),
                "labels": round(own["labels"].mean(), 1),
                "accuracy": spelled(accuracy(own), ""),
                "gain": "" if name == START else spelled(gain(own)),
                f"against {reference}": spelled(against) if against else "",
                "newly right": round(own["fixed"].mean(), 1),
                "newly wrong": round(own["broken"].mean(), 1),
                "seeds below the start": int((own["gained_points"] < 0).sum()),
                "seconds": round(own["seconds"].mean(), 1),
            }
        )
    return pd.DataFrame(rows)


def accuracy(own: pd.DataFrame) -> Interval:
    """Return the accuracy in percent of the runs of a row: their mean, or for one seed over its images."""
    if len(own) > 1:
        return mean_interval(own["percent"].tolist())
    images, percent = int(own["test_images"].iloc[0]), own["percent"].iloc[0]
    return share_interval(round(percent * images / 100), images).scaled(100)


def gain(own: pd.DataFrame) -> Interval:
    """Return the gain in points over the warm start, paired by seed, or for one seed by image."""
    if len(own) > 1:
        return mean_interval(own["gained_points"].tolist())
    return counted_difference(*(int(own[name].iloc[0]) for name in ("fixed", "broken", "test_images"))).scaled(100)


def difference(own: pd.DataFrame, others: pd.DataFrame) -> Interval | None:
    """Return the difference in points to the runs of another row, paired by seed; None where no seed has both.

    For one seed it is not known which images both get right, so the interval is that of independent images.
    """
    pairs = own.merge(others, on="seed", suffixes=("", "_other"))
    if pairs.empty:
        return None
    if len(pairs) > 1:
        return mean_interval((pairs["percent"] - pairs["percent_other"]).tolist())
    shares = (pairs["percent"].iloc[0] / 100, pairs["percent_other"].iloc[0] / 100)
    return unpaired_difference(*shares, int(pairs["test_images"].iloc[0])).scaled(100)


def spelled(interval: Interval, sign: str = "+") -> str:
    """Spell an estimate with its bounds."""
    return f"{interval.estimate:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"
