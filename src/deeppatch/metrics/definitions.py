"""What each measure means, in one sentence that tables print under their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from deeppatch.errors import UserError


class Definition(NamedTuple):
    """A measure: its name in tables, one sentence, its unit, and whether a larger value is better (None: neither)."""

    title: str
    sentence: str
    unit: str
    larger_is_better: bool | None


DEFINITIONS = {
    "accuracy": Definition(
        "accuracy", "Share of the images that are classified correctly.", "%", True,
    ),
    "change": Definition(
        "change", "Accuracy minus that of the base on the same images.", "points", True,
    ),
    "repair": Definition(
        "repair", "Share of all images that the base classifies wrongly and this network correctly.", "%", True,
    ),
    "break": Definition(
        "break", "Share of all images that the base classifies correctly and this network wrongly.", "%", False,
    ),
    "repair_rate": Definition(
        "RR",
        "Repair rate: share of the images that the base classifies wrongly which this network classifies "
        "correctly.",
        "%", True,
    ),
    "negative_flip_rate": Definition(
        "NFR",
        "Negative flip rate: share of all images that the base classifies correctly and this network wrongly.",
        "%", False,
    ),
    "flips": Definition(
        "flips", "Share of the images whose prediction is another than the base's, correct or not.", "%", None,
    ),
    "backward_trust": Definition(
        "BTC", "Backward trust compatibility: share of the base's correct answers that stay correct.", "%", True,
    ),
    "backward_error": Definition(
        "BEC",
        "Backward error compatibility: share of this network's errors that the base makes too; 100 where "
        "there are no errors.",
        "%", True,
    ),
    "worst_class": Definition(
        "worst class", "Accuracy of the class that has the lowest one.", "%", True,
    ),
    "largest_class_drop": Definition(
        "largest class drop",
        "Accuracy of the base minus that of this network for the class that loses most; negative where all "
        "classes gain.",
        "points", False,
    ),
    "aaod": Definition(
        "AAOD",
        "Average absolute odds difference: mean over classes of the differences between two groups of images "
        "in the true and in the false positive rate, halved; 0 where the groups are treated alike.",
        "share", False,
    ),
    "ece": Definition(
        "ECE",
        "Expected calibration error: mean over 15 bins of equal width of |accuracy - mean confidence|, "
        "weighted by their images.",
        "share", False,
    ),
    "ece_mass": Definition(
        "ECE (equal mass)",
        "Expected calibration error with 15 bins of equally many images, sorted by confidence.",
        "share", False,
    ),
    "largest_gap": Definition(
        "largest gap", "Largest |accuracy - mean confidence| of one of 15 bins of equal width.", "share", False,
    ),
    "nll": Definition(
        "NLL", "Negative log likelihood: mean of -log p of the true class, from a softmax in float64.", "nats", False,
    ),
    "brier": Definition(
        "Brier",
        "Mean of the squared distance between the probabilities and the true class, summed over classes: 0 to"
        " 2.",
        "0 to 2", False,
    ),
    "temperature": Definition(
        "temperature",
        "Number that logits are divided by for the smallest NLL on clean validation images; above 1 for a "
        "network that is too sure.",
        "factor", None,
    ),
    "mean_corruption_error": Definition(
        "mean corruption error",
        "Mean error over corruption types and severities, each counting the same, without a base.",
        "%", False,
    ),
    "corruption_error": Definition(
        "error relative to the base",
        "Errors as a percentage of the base's over the same images: 100 where nothing is gained.",
        "%", False,
    ),
    "mce": Definition(
        "mCE",
        "Mean over corruption types of the errors summed over severities as a percentage of the base's: 100 "
        "is the base; types on which the base makes no errors are left out and named.",
        "%", False,
    ),
    "relative_mce": Definition(
        "relative mCE",
        "As mCE, after each network's error on clean images has been taken off; types on which the base is no"
        " worse than on clean images are left out and named.",
        "%", False,
    ),
    "robust_accuracy": Definition(
        "robust accuracy",
        "Share of all images that are classified correctly before and after every attack within the "
        "L-infinity ball.",
        "%", True,
    ),
    "attack_success": Definition(
        "ASR",
        "Attack success rate: share of the images that both networks classify correctly for which an attack "
        "within the L-infinity ball finds an error.",
        "%", False,
    ),
    "mcnemar_p": Definition(
        "p",
        "Exact two-sided p value of McNemar's test that both networks are correct equally often on this view.",
        "probability", None,
    ),
    "holm_p": Definition(
        "p (Holm)",
        "The p value adjusted for the number of methods that are compared with the base.",
        "probability", None,
    ),
    "auroc": Definition(
        "AUROC",
        "Share of the pairs of a clean and a degraded image in which the router scores the degraded one "
        "higher.",
        "share", True,
    ),
    "false_switch_percent": Definition(
        "false switches", "Share of the clean images that used the patched network.", "%", False,
    ),
    "missed_switch_percent": Definition(
        "missed switches", "Share of the degraded images that did not use the patched network.", "%", False,
    ),
}  # fmt: skip


OF_CHANGES = (
    "intervals of changes in accuracy: 95 %, over images, in closed form for paired answers (Agresti and Min); an "
    "image counts once, with all its versions"
)
OF_OTHERS = (
    "other intervals: of shares on one view those of Clopper and Pearson; of means over views percentiles of a "
    "bootstrap that draws images with all their versions; of means over seeds the same over seeds and images"
)


def definition(measure: str) -> Definition:
    """Return the definition of a measure by its key in tables.

    Raises:
        UserError: When there is no such measure.

    >>> definition("repair_rate").title, definition("repair_rate").unit
    ('RR', '%')
    """
    if measure not in DEFINITIONS:
        raise UserError(f"measure={measure!r}: choose one of {', '.join(DEFINITIONS)}")
    return DEFINITIONS[measure]


def explained(measures: Iterable[str]) -> list[str]:
    """Return one line for each measure, to be printed under a table: title, sentence, unit, and which way is better.

    >>> explained(["break"])
    ['break: Share of all images that the base classifies correctly and this network wrongly (%; smaller is better).']
    """
    lines = []
    for measure in measures:
        title, sentence, unit, larger = definition(measure)
        better = "" if larger is None else f"; {'larger' if larger else 'smaller'} is better"
        lines.append(f"{title}: {sentence.removesuffix('.')} ({unit}{better}).")
    return lines
