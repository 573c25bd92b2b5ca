"""What the safe recipe adds to the report of relearn: the prior, the floor, and what helped."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.hybrid.prior import PriorEstimate
from deeppatch.hybrid.relearning import Relearned
from deeppatch.hybrid.safe_repair import SafeRepair
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.semisupervised import EVAL_BATCH_SIZE
from deeppatch.report import repairs
from deeppatch.training import predict


def steps_of_safe(context: Context, relearned: Relearned, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """Return what each step of the safe recipe has gained on the test images, and what the floor has changed."""
    safe, test = relearned.safe, views.clean(context.splits.test, EVAL_BATCH_SIZE)
    assert safe is not None
    corrected, averaged = (
        predict(network, test, amp=context.options.amp, label="testing") for network in (safe.corrected, safe.averaged)
    )
    before_floor = repairs.outcome(predictions["finetuned"], averaged, test.labels)
    percents = [repairs.percent(each == test.labels) for each in (predictions["finetuned"], corrected)]
    return {
        "prior_decision": safe.prior.decision if safe.prior else None,
        "prior_percent": percents[1],
        "prior_gained_points": round(percents[1] - percents[0], 4),
        "trained_percent": before_floor["last_percent"],
        "trained_gained_points": round(before_floor["last_percent"] - percents[1], 4),
        "floor_alpha": safe.floor.alpha,
        "fixed_before_floor": before_floor["fixed"],
        "broken_before_floor": before_floor["broken"],
        "gave_up_pseudo_labels": safe.gave_up,
    }


def counts_of_safe(selection: Selection, safe: SafeRepair, use: str) -> dict[str, int]:
    """Return the numbers of images that the safe recipe reads: no propagated labels, but the whole pool."""
    bought = selection.counts(use)["labels_bought"]
    return {"labels_bought": bought, "labelled_images": bought, "unlabelled_images": safe.unlabelled_images}


def write_prior(context: Context, estimate: PriorEstimate) -> None:
    """Write prior.csv: the share of each class in val and in the pool, its interval, and what its logit gets."""
    columns = {
        "class": list(context.source.classes),
        "val_share": estimate.train.tolist(),
        "pool_share": estimate.pool.tolist(),
        "low": estimate.low.tolist(),
        "high": estimate.high.tolist(),
        "pool_share_by_confusion": estimate.confusion.tolist(),
        "added_to_logit": estimate.correction.tolist(),
    }
    context.stage.write_table("prior.csv", pd.DataFrame(columns))


def what_helped(row: dict[str, Any], use: str) -> str:
    """Say in words what the prior, the training and the floor have gained.

    >>> row = {"prior_decision": "corrected", "prior_gained_points": 1.5, "trained_gained_points": 2.0,
    ...        "floor_alpha": 1.0, "broken_before_floor": 9, "broken": 9, "gave_up_pseudo_labels": False}
    >>> what_helped(row, "labels")
    'what helped: the prior +1.50 points; training with labels +2.00 points; the floor keeps the result of training'
    """
    means = {"both": "labels and pseudo-labels", "labels": "labels", "unlabelled": "pseudo-labels"}[use]
    decided = row["prior_decision"]
    prior = f"{row['prior_gained_points']:+.2f} points" if decided == "corrected" else decided or "was not corrected"
    kept = f"takes {100 * row['floor_alpha']:g} % of the way to it ({row['broken']} instead of {{}} newly wrong)"
    floor = "keeps the result of training" if row["floor_alpha"] == 1 else kept.format(row["broken_before_floor"])
    if row["floor_alpha"] == 0:
        floor = "keeps the start, because training did not help on val"
    gave_up = ", after which pseudo-labels were given up" if row["gave_up_pseudo_labels"] else ""
    return (
        f"what helped: the prior {prior}; training with {means}{gave_up} {row['trained_gained_points']:+.2f} points; "
        f"the floor {floor}"
    )
