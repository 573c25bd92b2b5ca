"""Closing lines say the numbers that they are given, and claim a gain only where its interval shows one."""

from __future__ import annotations

import json

import pytest
import torch

from deeppatch import metrics
from deeppatch.report import closing


def interval(estimate: float, reach: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - reach, "high": estimate + reach}


def evaluated(*, tuned_clean: float = -2.0, reach: float = 1.0) -> dict[str, object]:
    """What evaluate leaves: the switched network keeps clean accuracy, fine-tuning changes it by `tuned_clean`."""
    points = {
        "finetuned against pretrained": (tuned_clean, 44.0, 20.0),
        "switched against pretrained": (0.0, 42.0, 21.0),
        "switched against finetuned": (-tuned_clean, -2.0, 1.0),
    }
    views = ("clean", "blurred", "mixed")
    return {
        "test_images": 360,
        "difference_points": {
            pair: {view: interval(value, reach) for view, value in zip(views, values, strict=True)}
            for pair, values in points.items()
        },
    }


def test_that_a_bound_does_not_hold_is_said_with_the_gain():
    remark = "the network has seen the val images. So the bound does not hold"
    line = closing.switched_network(evaluated() | {"calibration": {"remark": remark}})
    assert line.text.endswith(f" But {remark}.")
    assert "But" not in closing.switched_network(evaluated() | {"calibration": {}}).text


def test_the_switched_network_gains_and_fine_tuning_costs():
    line = closing.switched_network(evaluated())
    assert line.shown
    assert "the switched network gains +42.00 [+41.00, +43.00], and on clean images +0.00 [-1.00, +1.00]" in line.text
    assert "gains +44.00 [+43.00, +45.00], and on clean images -2.00 [-3.00, -1.00] (n = 360 test images)" in line.text
    assert "Fine-tuning costs clean accuracy, which the switched network keeps." in line.text
    assert "over the blur levels, +1.00 [+0.00, +2.00] on the mixed stream" in line.text


@pytest.mark.parametrize(("clean", "reach"), [(-0.5, 1.0), (0.0, 1.0), (0.5, 0.1)])
def test_a_cost_of_fine_tuning_that_the_interval_does_not_show_is_not_claimed(clean, reach):
    text = closing.switched_network(evaluated(tuned_clean=clean, reach=reach)).text
    assert "So few images show no cost of fine-tuning; RESULTS.md" in text
    assert "costs" not in text


def test_the_decomposed_layer_is_the_one_that_was_fine_tuned():
    heads = [
        {"head": "whole layer", "features_a_class": 64, "accuracy_percent": 98.0, "multiply_adds": 640},
        {"head": "influence, k=5", "features_a_class": 5, "accuracy_percent": 60.0, "multiply_adds": 50},
        {"head": "influence, k=10", "features_a_class": 10, "accuracy_percent": 90.0, "multiply_adds": 100},
    ]
    tuned = {"features": "influence, k=10", "test_accuracy_percent": {"before": 90.0, "best_epoch": 97.0}}
    line = closing.decomposition({"test_images": 200, "heads": heads}, tuned)
    assert "with 10 features a class the last layer needs 100 of 640 multiply-adds" in line.text
    cut = line.differences["decomposed against whole"]
    assert cut == metrics.unpaired_difference(0.90, 0.98, 200).scaled(100)
    assert line.differences["fine-tuned against whole"].estimate == pytest.approx(-1.0)
    assert line.counts == {"test_images": 200, "whole": 640, "decomposed": 100}


def composed(gains: list[float]) -> dict[str, object]:
    """What compose leaves when each class's metrics rise by these points."""
    names = ("precision", "recall", "f1", "others_accuracy")
    percent = {
        f"class {index}": {
            "weak model alone": dict.fromkeys(names, 80.0),
            "calibrate": dict.fromkeys(names, 80.0 + gain),
            "min_max": dict.fromkeys(names, 0.0),
        }
        for index, gain in enumerate(gains)
    }
    percent["mean"] = percent["class 0"]
    return {"join": "calibrate", "test_images": {f"class {n}": 100 for n in range(len(gains))}, "percent": percent}


@pytest.mark.parametrize(("gains", "shown"), [([4.0, 5.0, 6.0], True), ([-4.0, 5.0, 6.0], False)])
def test_modules_change_each_class_and_the_mean_is_over_classes(gains, shown):
    split = {
        "test_images": 360, "composed_accuracy_percent": 97.0, "strong_accuracy_percent": 98.0,
        "kernels_kept_percent": 66.2, "kernels": 336,
    }  # fmt: skip
    line = closing.modules(split, composed(gains))
    assert line.differences["corrected class, f1"] == metrics.mean_interval(gains)
    assert line.differences["composed against strong"] == metrics.unpaired_difference(0.97, 0.98, 360).scaled(100)
    assert "modules keep 66.2 % of 336 kernels" in line.text
    assert (line.shown, "RESULTS.md" in line.text) == (shown, not shown)


@pytest.mark.parametrize(("fixed", "shown"), [([12, 14, 16], True), ([1, 8, 0], False)])
def test_hybrid_gains_over_all_images_and_is_compared_with_random_of_the_same_seed(fixed, shown):
    counted = {"hybrid": fixed, "random": [4, 5, 6]}
    runs = [
        {"method": method, "seed": seed, "gained_points": count - 3, "labels_bought": 52, "test_images": 100,
         "fixed": count, "broken": 3}
        for method, counts in counted.items() for seed, count in enumerate(counts)
    ]  # fmt: skip
    line = closing.hybrid(runs)
    after, before = (torch.zeros(300, dtype=torch.bool) for _ in range(2))
    after[: sum(fixed)] = True
    before[-9:] = True
    assert line.differences["hybrid against warm start"] == metrics.paired_difference(after, before).scaled(100)
    by_seed = [one - other for one, other in zip(fixed, counted["random"], strict=True)]
    assert line.differences["hybrid against random"] == metrics.mean_interval(by_seed)
    assert "with 52 labels of hybrid and pseudo-labels the network gains" in line.text
    assert "over 3 seeds (n = 100 test images each)" in line.text
    assert (line.shown, "No gain is shown here; RESULTS.md" in line.text) == (shown, not shown)
    assert closing.hybrid(runs[::-1]).differences == line.differences, "the order of the runs does not matter"


def test_lines_are_plain_values_for_json():
    facts = closing.switched_network(evaluated()).facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
