"""The networks beside methods of test-time adaptation, on streams of degraded images: compare --adapt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from deeppatch import metrics
from deeppatch.adapt.batch_statistics import BnPriorSettings
from deeppatch.adapt.cells import cached_prior_count, cached_streams
from deeppatch.adapt.names import STREAMS
from deeppatch.adapt.results import StreamResults
from deeppatch.cli.compare.attacking import without
from deeppatch.cli.compare.inputs import cells
from deeppatch.cli.context import Context
from deeppatch.data.corruptions import is_for_test_only, is_paired
from deeppatch.data.streams import choose_images, stream
from deeppatch.errors import UserError
from deeppatch.progress import info
from deeppatch.report import scores

MEANING = (
    "all rows answer the same images in the same order, {images} of each of {levels} levels{single}; "
    "accuracy: in percent of these answers, with the 95 % interval of a bootstrap that draws images with all "
    "their versions; difference: points gained over {reference}, with its 95 % interval in closed form for paired "
    "answers, an image once with all its versions; clean: accuracy on clean images afterwards; forward, train: passes "
    "of an image for each answer, without and with a backward pass; resets: returns of a method to the original "
    "weights; neighbours, past: whether an answer depends on the other images of its batch, on earlier batches"
)


def check(context: Context, left_out: np.ndarray) -> None:
    """Raise UserError where the streams cannot be made of these images and degradations."""
    options = context.options
    if not is_paired(context.corruption):
        raise UserError(
            "--adapt: degraded images that are no versions of the test images have no streams; leave it out"
        )
    test = without(context.data.test, left_out)
    images = test.take(choose_images(test, options.per_corruption, options.seed).to(test.labels.device))
    for name in options.stream or STREAMS:
        try:
            stream(name, images, context.corruption, single=options.single, seed=options.seed)
        except UserError as error:
            others = " ".join(each for each in options.stream or STREAMS if each != name)
            hint = f" (--per_corruption, or --stream {others})" if others else " (--per_corruption)"
            raise UserError(f"--stream {name}: {error}{hint}") from error


def write_adaptation(
    context: Context, networks: Mapping[str, nn.Module], base: str, target: str | None, left_out: np.ndarray
) -> None:
    """Measure methods of adaptation and all networks on streams, write two tables and print one.

    The difference is to the network that requirements are about, switched where there is one, else to the base.
    """
    options, reference = context.options, target or base
    data = replace(context.data, test=without(context.data.test, left_out))
    settings: dict[str, Any] = {}
    if "bn-prior" in options.adapt and not is_for_test_only(context.corruption):
        settings["bn-prior"] = prior_count(context, networks[base])
    found = cached_streams(
        networks[base],
        data,
        context.corruption,
        cells(options),
        methods=options.adapt,
        streams=options.stream or STREAMS,
        networks=networks,
        settings=settings,
        reference=reference,
        per_corruption=options.per_corruption,
        single=options.single,
        batch_size=options.adapt_batch,
        seed=options.seed,
    )
    table = summary(found)
    context.stage.write_table("adaptation.csv", table)
    by_level = found.by_type().rename(columns={"method": "row", "type": "level"}).assign(reference=reference)
    context.stage.write_table("adaptation_by_level.csv", by_level)
    for name, own in table.groupby("stream", sort=False):
        told_above = ["stream", "reference", *["note"] * (not own["note"].any())]
        shown = own.drop(columns=told_above).assign(resets=own["resets"].astype(str).replace("<NA>", "-"))
        print(f"the stream {name}\n{scores.format_table(shown)}\n")
    asked = "single" in (options.stream or STREAMS)
    single = f" ({len(found.single_image)} in the stream single)" if asked else ""
    print(MEANING.format(images=len(found.image), single=single, levels=len(found.levels), reference=reference) + "\n")


def prior_count(context: Context, model: nn.Module) -> BnPriorSettings:
    """Return the prior count of bn-prior that classifies most degraded images of val, as many as streams have."""
    options, val = context.options, context.data.val
    chosen = val.take(choose_images(val, options.per_corruption, options.seed).to(val.labels.device))
    found = cached_prior_count(
        model, chosen, context.corruption, cells(options), batch_size=options.adapt_batch, seed=options.seed
    )
    info(f"bn-prior: a prior count of {found.count}, chosen on {len(chosen)} images of val")
    return found


def summary(found: StreamResults) -> pd.DataFrame:
    """Return a row for each row and stream: `by_stream` of the results, and the interval of the accuracy."""
    table = found.by_stream().rename(columns={"method": "row", "low": "difference_low", "high": "difference_high"})
    intervals = accuracy_intervals(found)
    bounds = [
        intervals.get((row, name), (np.nan, np.nan)) for row, name in zip(table["row"], table["stream"], strict=True)
    ]
    table = table.assign(low=[low for low, _high in bounds], high=[high for _low, high in bounds])
    first = ["row", "stream", "n", "accuracy", "low", "high"]
    table["resets"] = table["resets"].astype("Int64")
    return table[[*first, *(name for name in table.columns if name not in first)]].assign(reference=found.reference)


def accuracy_intervals(found: StreamResults) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the 95 % interval of each accuracy in percent; an image with all its copies is drawn as one."""
    intervals = {}
    for name in dict.fromkeys(name for _row, name in found.answers):
        rows = {
            row: answers.correct
            for (row, each), answers in found.answers.items()
            if each == name and answers.correct is not None
        }
        if not rows:
            continue
        correct = {row: dict(zip(found.levels, each, strict=True)) for row, each in rows.items()}
        image = {level: np.arange(next(iter(rows.values())).shape[1]) for level in found.levels}
        samples = metrics.paired_samples(correct, image, next(iter(rows)))
        for row in rows:
            interval = samples.interval("accuracy", row, found.levels)
            intervals[row, name] = (interval.low, interval.high)
    return intervals
