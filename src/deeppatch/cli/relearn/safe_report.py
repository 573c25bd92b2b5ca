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
        "floor_kept_raw": safe.floor.is_raw,
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


def name_of_result(row: dict[str, Any]) -> str:
    """Say which network the floor has taken.

    >>> name_of_result({"floor_kept_raw": False, "floor_alpha": 0.25})
    '25 % of the way from the fine-tuned network to the last epoch'
    """
    if row["floor_kept_raw"]:
        return "the raw network, because nothing does better on val"
    if row["floor_alpha"] == 0:
        corrected = ", its prior corrected" if row["prior_decision"] == "corrected" else ""
        return f"the fine-tuned network{corrected}, because training did not help on val"
    if row["floor_alpha"] == 1:
        return "the last epoch"
    return f"{100 * row['floor_alpha']:g} % of the way from the fine-tuned network to the last epoch"


def what_helped(row: dict[str, Any], use: str) -> str:
    """Say in words what each step from the raw network to the result has changed; the changes add up.

    >>> row = {"raw_percent": 60.0, "finetuned_percent": 59.0, "prior_percent": 59.0, "trained_percent": 63.5,
    ...        "last_percent": 64.0, "prior_decision": "no shift", "floor_alpha": 0.5, "floor_kept_raw": False,
    ...        "broken_before_floor": 9, "broken": 4, "gave_up_pseudo_labels": False}
    >>> for part in what_helped(row, "labels").split("; "):
    ...     print(part)
    in points of test accuracy, what helped: training with labels +4.50, the floor +0.50 (4 instead of 9 newly wrong)
    what did not: fine-tuning -1.00, the prior +0.00 (no shift)
    together +4.00 over the raw network
    """
    means = {"both": "labels and pseudo-labels", "labels": "labels", "unlabelled": "pseudo-labels"}[use]
    steps = [("fine-tuning", "finetuned_percent", "")]
    if "prior_percent" in row:
        decided = row["prior_decision"] or "not asked for"
        gave_up = "pseudo-labels were given up on the way" if row["gave_up_pseudo_labels"] else ""
        spared = f"{row['broken']} instead of {row['broken_before_floor']} newly wrong"
        steps += [
            ("the prior", "prior_percent", "" if decided == "corrected" else decided),
            (f"training with {means}", "trained_percent", gave_up),
            ("the floor", "last_percent", spared if row["floor_alpha"] < 1 else "it keeps the last epoch"),
        ]
    else:
        steps.append((f"training with {means}", "last_percent", ""))
    at, groups = round(row["raw_percent"], 2), {"what helped": list[str](), "what did not": list[str]()}
    for name, percent, remark in steps:
        change = round(round(row[percent], 2) - at, 2) + 0.0  # of what is shown, so that the sum is, too
        at = round(row[percent], 2)
        told = f"{name} {change:+.2f}" + (f" ({remark})" if remark else "")
        groups["what helped" if change > 0 else "what did not"].append(told)
    parts = [f"{group}: {', '.join(told) or 'nothing'}" for group, told in groups.items()]
    parts.append(f"together {round(at - round(row['raw_percent'], 2), 2) + 0.0:+.2f} over the raw network")
    if use == "both":
        parts.append("a run with --use labels tells what the labels do without pseudo-labels")
    return f"in points of test accuracy, {'; '.join(parts)}"
