"""The closing lines of relearn: what the number is of, and steps that add up to it."""

from __future__ import annotations

import itertools
import re

import pytest

from deeppatch.cli.relearn import report
from deeppatch.cli.relearn.safe_report import name_of_result, what_helped

ROW = {
    "raw_percent": 48.0, "finetuned_percent": 46.5, "prior_percent": 46.5, "trained_percent": 23.5,
    "last_percent": 50.0, "gained_points": 3.5, "prior_decision": "no shift", "floor_alpha": 0.5,
    "floor_kept_raw": False, "broken_before_floor": 52, "broken": 2, "fixed": 9, "gave_up_pseudo_labels": True,
    "labels_bought": 20, "labelled_images": 20,
}  # fmt: skip


def test_of_the_safe_recipe_the_last_epoch_the_result_and_both_networks_before_are_named(caplog):
    caplog.set_level("INFO", "deeppatch")
    report.summarize(ROW, {})
    assert caplog.messages == [
        "test accuracy: 48.00 % raw, 46.50 % fine-tuned, 23.50 % after the last epoch; the floor takes 50 % of the way "
        "from the fine-tuned network to the last epoch: 50.00 % (+3.50 points over the fine-tuned network for 20 "
        "labels; 9 fixed, 2 broken)"
    ]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"floor_alpha": 1.0}, "the last epoch"),
        ({"floor_alpha": 0.0}, "the fine-tuned network, because training did not help on val"),
        ({"floor_alpha": 0.0, "prior_decision": "corrected"}, "the fine-tuned network, its prior corrected, because"),
        ({"floor_alpha": 0.0, "floor_kept_raw": True}, "the raw network, because nothing does better on val"),
    ],
)
def test_the_network_that_the_floor_takes_is_named(changes, name):
    assert name_of_result({**ROW, **changes}).startswith(name)


def test_what_did_not_help_is_not_called_help():
    assert what_helped(ROW, "both") == (
        "in points of test accuracy, what helped: the floor +26.50 (2 instead of 52 newly wrong); what did not: "
        "fine-tuning -1.50, the prior +0.00 (no shift), training with labels and pseudo-labels -23.00 (pseudo-labels "
        "were given up on the way); together +2.00 over the raw network; a run with --use labels tells what the labels "
        "do without pseudo-labels"
    )
    lost = {**ROW, "last_percent": 23.5, "floor_alpha": 1.0}
    assert what_helped(lost, "labels").startswith("in points of test accuracy, what helped: nothing; what did not: ")


@pytest.mark.parametrize("use", ["both", "labels", "unlabelled"])
def test_steps_add_up_however_accuracies_are_rounded(use):
    steps = ("finetuned_percent", "prior_percent", "trained_percent", "last_percent")
    for thirds in itertools.product(range(3), repeat=4):
        safe = {**ROW, **{name: 50 + third / 3 for name, third in zip(steps, thirds, strict=True)}}
        published = {name: value for name, value in safe.items() if not name.startswith(("prior", "trained", "floor"))}
        for row in (safe, published):
            said = what_helped(row, use)
            *parts, whole = map(float, re.findall(r" ([+-]\d+\.\d\d)", said))
            assert sum(parts) == pytest.approx(whole), said
            assert whole == pytest.approx(round(row["last_percent"], 2) - row["raw_percent"])
            assert "-0.00" not in said
