from __future__ import annotations

import math
import statistics

import pandas as pd
import pytest
import torch

from deeppatch.report import repairs
from deeppatch.training import History

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
BEFORE = torch.tensor([0, 0, 1, 1, 0, 0, 2, 0])
AFTER = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0])


def kind(method: str, seed: int, last: float, **changes) -> dict:
    """A run's row: ten labels, fine-tuned to 50 percent."""
    return {
        "method": method, "use": "both", "features": "penultimate", "encoder": None, "encoder_epochs": float("nan"),
        "wall_seconds": 2.0 * seed, "budget": "1%", "views": 8, "epochs": 10,
        "lr": 1e-3, "batch_size": 64, "steps": float("nan"), "ramp": 0, "seed": seed, "labels_bought": 10,
        "finetuned_percent": 50.0, "last_percent": last, "gained_points": last - 50, "fixed": 7, "broken": 3, **changes,
    }  # fmt: skip


def test_an_outcome_counts_what_was_fixed_and_broken_and_they_make_the_gain():
    found = repairs.outcome(BEFORE, AFTER, LABELS)
    assert found == {
        "finetuned_percent": 50.0, "last_percent": 62.5, "gained_points": 12.5, "fixed": 3, "broken": 2,
    }  # fmt: skip


def test_accuracies_by_class_are_of_the_class_s_images():
    table = repairs.by_class({"raw": BEFORE, "last": AFTER}, LABELS, ("a", "b", "c", "none"))
    assert table["images"].tolist() == [3, 3, 2, 0]
    assert table["raw_percent"].tolist()[:3] == pytest.approx([200 / 3, 100 / 3, 50], abs=1e-3)
    assert table["last_percent"].tolist()[:3] == pytest.approx([200 / 3, 100, 0], abs=1e-3)
    assert math.isnan(table["raw_percent"][3])


def test_the_epoch_of_least_entropy_is_chosen_without_looking_at_test():
    watched = [{"test": 0.9, "entropy": 0.3}, {"test": 0.7, "entropy": 0.1}, {"test": 0.8, "entropy": 0.2}]
    table = repairs.epochs(History([1.0, 2.0, 3.0], [0.5, 0.6, 0.7], watched))
    assert table["test_percent"].tolist() == pytest.approx([90, 70, 80])
    assert table["val_percent"].tolist() == pytest.approx([50, 60, 70])
    found = repairs.least_entropy(table)
    assert found == {"least_entropy_epoch": 2, "least_entropy_percent": pytest.approx(70)}
    plain = repairs.epochs(History([1.0], [0.5], [{"test": 0.9}]))
    assert list(plain) == ["epoch", "loss", "val_percent", "test_percent"]
    assert set(repairs.least_entropy(plain).values()) == {None}


def test_seeds_of_one_kind_make_one_row_with_mean_and_sample_deviation():
    lasts = {10: 51.0, 20: 52.5, 30: 54.0}
    rows = [kind("hybrid", seed, last) for seed, last in lasts.items()] + [kind("gini", 10, 60.0)]
    table = repairs.over_seeds(pd.DataFrame(rows))
    assert table["method"].tolist() == ["gini", "hybrid"], "most is gained first"
    gini, hybrid = table.to_dict("records")
    assert (gini["seeds"], hybrid["seeds"]) == (1, 3)
    assert (gini["wall_seconds"], hybrid["wall_seconds"]) == (20, 40)
    assert hybrid["last_percent"] == pytest.approx(52.5)
    assert hybrid["last_percent_deviation"] == pytest.approx(statistics.stdev(lasts.values()))
    assert hybrid["gained_points"] == pytest.approx(2.5)
    assert math.isnan(gini["gained_points_deviation"])


def test_runs_of_earlier_versions_are_of_the_kind_that_their_settings_have_now():
    now = {"max_batches": 5, "tau_setting": "auto", "cluster_size": 10, "weight_decay": 5e-4, "rounds": 1}
    rows = pd.DataFrame([kind("hybrid", 10, 51.0, steps=5), kind("hybrid", 20, 52.0, **now)])
    assert repairs.over_seeds(rows)["seeds"].tolist() == [2]
    other = pd.DataFrame([kind("hybrid", 10, 51.0, steps=5), kind("hybrid", 20, 52.0, **{**now, "tau_setting": 0.3})])
    table = repairs.over_seeds(other)
    assert {repairs.name_of(row, table) for row in table.to_dict("records")} == {
        "hybrid tau_setting=auto", "hybrid tau_setting=0.3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"use": "labels"}, {"epochs": 3}, {"max_batches": 5}, {"ramp": 2}, {"features": "ssl"}]
)
def test_runs_that_differ_in_more_than_the_seed_are_kept_apart_and_named_by_it(change):
    rows = pd.DataFrame([kind("hybrid", 10, 51.0), kind("hybrid", 20, 52.0, **change), kind("gini", 10, 51.5)])
    table = repairs.over_seeds(rows)
    assert len(table) == 3
    ((name, value),) = change.items()
    names = {repairs.name_of(row, table) for row in table.to_dict("records")}
    assert f"hybrid {name}={value}" in names
    agreed = name in ("use", "features")  # of other methods nothing else is known
    assert ("gini" in names) is agreed
    assert len(names) == 3


@pytest.mark.parametrize("change", [{"encoder": "resnet8"}, {"encoder_epochs": 20}])
def test_runs_with_other_encoders_are_no_seeds_of_one_kind(change):
    ssl = {"features": "ssl", "encoder": "resnet18", "encoder_epochs": 100}
    rows = [kind("hybrid", 10, 51.0), kind("hybrid", 10, 53.0, **ssl), kind("hybrid", 20, 55.0, **{**ssl, **change})]
    table = repairs.over_seeds(pd.DataFrame(rows))
    assert table["gained_points"].tolist() == [5, 3, 1]
    ((name, value),) = change.items()
    assert [repairs.name_of(row, table) for row in table.to_dict("records")] == [
        f"hybrid features=ssl {name}={value}", f"hybrid features=ssl {name}={ssl[name]}", "hybrid features=penultimate",
    ]  # fmt: skip


def test_rows_of_versions_that_named_no_encoder_are_compared():
    row = kind("hybrid", 10, 51.0)
    old = {name: value for name, value in row.items() if not name.startswith("encoder")}
    table = repairs.over_seeds(pd.DataFrame([old]))
    assert (len(table), repairs.name_of(table.to_dict("records")[0], table)) == (1, "hybrid")


def test_budgets_are_apart_under_one_name():
    rows = pd.DataFrame([kind("hybrid", 10, 51.0), kind("hybrid", 10, 53.0, budget="5%", labels_bought=50)])
    table = repairs.over_seeds(rows)
    assert table["labels_bought"].tolist() == [50, 10]
    assert {repairs.name_of(row, table) for row in table.to_dict("records")} == {"hybrid"}


def test_what_is_shown_has_signs_and_deviations_where_there_are_any():
    rows = pd.DataFrame([kind("hybrid", 10, 51.0), kind("hybrid", 20, 53.0), kind("gini", 10, 49.0)])
    shown = repairs.format_comparison(repairs.over_seeds(rows)).splitlines()
    assert shown[0].split() == ["method", "labels", "seeds", "finetuned", "last", "gained", "fixed", "broken"]
    assert " ".join(shown[1].split()) == "hybrid 10 2 50.00 ± 0.00 52.00 ± 1.41 +2.00 ± 1.41 7.0 3.0"
    assert " ".join(shown[2].split()) == "gini 10 1 50.00 49.00 -1.00 7.0 3.0"


@pytest.mark.parametrize(
    ("seeds", "said"), [([1], "one seed"), ([1, 1], "one seed"), ([3], "over 3 seeds"), ([1, 3], "over 1 to 3 seeds")]
)
def test_a_comparison_says_over_how_many_seeds_it_is(seeds, said):
    rows = [kind(f"method {index}", seed, 51.0) for index, most in enumerate(seeds) for seed in range(most)]
    shown = repairs.seeds_of(repairs.over_seeds(pd.DataFrame(rows)))
    assert said in shown
    assert ("deviation" in shown) == (max(seeds) > 1), "one seed has none"
