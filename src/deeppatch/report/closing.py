"""One line for each method: what it has gained and what that has cost, with 95 % intervals.

Every function takes what the stages have left: the content of their metrics.json, as dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from deeppatch import metrics
from deeppatch.metrics import Interval
from deeppatch.report.repairs import over_runs

UNCORRECTED = "weak model alone"  # as compose calls it
ELSEWHERE = "RESULTS.md has the results on other data"


@dataclass(frozen=True)
class Line:
    """What one method has gained and lost.

    Args:
        method: The name of the method.
        text: One or two sentences with the numbers.
        shown: Whether the interval of the gain excludes zero.
        differences: The numbers of the text by name, in percentage points.
        counts: What the numbers are from: images, seeds, labels, multiply-adds.
    """

    method: str
    text: str
    shown: bool
    differences: Mapping[str, Interval]
    counts: Mapping[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return the line as plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.method}: {self.text}"


def switched_network(evaluated: Mapping[str, Any]) -> Line:
    """Return the line of DeepPatch from evaluate's metrics.json, which must have a fine-tuned network."""
    pairs = {
        pair: {view: Interval(**each) for view, each in views.items()}
        for pair, views in evaluated["difference_points"].items()
    }
    switched, tuned = pairs["switched against pretrained"], pairs["finetuned against pretrained"]
    behind = pairs["switched against finetuned"]
    text = (
        f"over the blur levels the switched network gains {_points(switched['blurred'])}, and on clean images "
        f"{_points(switched['clean'])}; fine-tuning of the whole network gains {_points(tuned['blurred'])}, and on "
        f"clean images {_points(tuned['clean'])} (n = {evaluated['test_images']} test images). "
    )
    if tuned["clean"].high < 0:
        text += "Fine-tuning costs clean accuracy"
        text += ", which the switched network keeps." if behind["clean"].low > 0 else "."
    else:
        text += f"So few images show no cost of fine-tuning; {ELSEWHERE}."
    text += f" The switched network against the fine-tuned one: {_points(behind['clean'])} on clean images, "
    text += f"{_points(behind['blurred'])} over the blur levels, {_points(behind['mixed'])} on the mixed stream."
    if remark := evaluated.get("calibration", {}).get("remark"):
        text += f" But {remark}."
    differences = {
        f"{pair}, {view}": views[view] for pair, views in pairs.items() for view in ("clean", "blurred", "mixed")
    }
    return Line("DeepPatch", text, switched["blurred"].low > 0, differences, {"test_images": evaluated["test_images"]})


def decomposition(validated: Mapping[str, Any], finetuned: Mapping[str, Any]) -> Line:
    """Return the line of Decomposing the Deep from the metrics.json of decompose validate and of finetune.

    Of the heads the one is taken that was fine-tuned. The intervals are unpaired ones.
    """
    images, before = validated["test_images"], finetuned["test_accuracy_percent"]
    whole = validated["heads"][0]
    sparse = next(each for each in validated["heads"] if each["head"] == finetuned["features"])
    cut, tuned = (
        metrics.unpaired_difference(percent / 100, whole["accuracy_percent"] / 100, images).scaled(100)
        for percent in (sparse["accuracy_percent"], before["best_epoch"])
    )
    text = (
        f"with {sparse['features_a_class']} features a class the last layer needs {sparse['multiply_adds']} of "
        f"{whole['multiply_adds']} multiply-adds, and test accuracy changes by {_points(cut)} as it is, by "
        f"{_points(tuned)} with the network fine-tuned (n = {images} test images; the intervals are wide, as for "
        "independent samples). The rest of the network, where nearly all the time goes, is as it was."
    )
    counts = {name: each["multiply_adds"] for name, each in (("whole", whole), ("decomposed", sparse))}
    return Line(
        "Decomposing the Deep",
        text,
        sparse["multiply_adds"] < whole["multiply_adds"],
        {"decomposed against whole": cut, "fine-tuned against whole": tuned},
        {"test_images": images, **counts},
    )


def modules(split: Mapping[str, Any], composed: Mapping[str, Any]) -> Line:
    """Return the line of CNNSplitter from the metrics.json of modularize and of compose.

    Changes of the corrected classes are means over the classes with Student's interval.
    """
    images = split["test_images"]
    whole = metrics.unpaired_difference(
        split["composed_accuracy_percent"] / 100, split["strong_accuracy_percent"] / 100, images
    ).scaled(100)
    classes = [name for name in composed["percent"] if name in composed["test_images"]]
    rows = [(composed["percent"][name][composed["join"]], composed["percent"][name][UNCORRECTED]) for name in classes]
    measures = {"f1": "F1", "precision": "precision", "recall": "recall", "others_accuracy": "accuracy of the others"}
    changes = {name: metrics.mean_interval([after[name] - before[name] for after, before in rows]) for name in measures}
    listed = ", ".join(f"{shown} {_points(changes[name])}" for name, shown in measures.items())
    text = (
        f"modules keep {split['kernels_kept_percent']:.1f} % of {split['kernels']} kernels in the mean, and all of "
        f"them composed change test accuracy by {_points(whole)} (n = {images}, as for independent samples). In "
        f"{len(classes)} weak models, one for each class to correct, its module (join: {composed['join']}) changes: "
        f"{listed} (intervals over the classes). "
    )
    shown = changes["f1"].low > 0
    text += "" if shown else f"The gain in F1 is within what so few classes can show; {ELSEWHERE}."
    differences = {"composed against strong": whole, **{f"corrected class, {name}": v for name, v in changes.items()}}
    kernels = {"kernels_kept_percent": split["kernels_kept_percent"]}
    return Line(
        "CNNSplitter", text.strip(), shown, differences, {"test_images": images, "classes": len(classes), **kernels}
    )


def hybrid(runs: Sequence[Mapping[str, Any]], method: str = "hybrid", baseline: str = "random") -> Line:
    """Return the line of HybridRepair from the metrics.json of relearn, one of each method for each seed.

    Gains are over the warm start, with intervals over the test images of all seeds; methods are compared by seed, with
    Student's interval.
    """
    gained = {each: over_runs(runs, each) for each in (method, baseline)}
    difference = metrics.mean_interval([gained[method][seed] - gained[baseline][seed] for seed in gained[method]])
    own, other = (_over_images([run for run in runs if run["method"] == each]) for each in (method, baseline))
    labels, images = runs[0]["labels_bought"], runs[0]["test_images"]
    text = (
        f"with {labels} labels of {method} and pseudo-labels the network gains {_points(own)} points on the test "
        f"images, with as many of a {baseline} choice {_points(other)}; {method} against {baseline}: "
        f"{_points(difference)} over {len(gained[method])} seeds (n = {images} test images each). "
    )
    text += "" if own.low > 0 else f"No gain is shown here; {ELSEWHERE}."
    differences = {
        f"{method} against warm start": own,
        f"{baseline} against warm start": other,
        f"{method} against {baseline}": difference,
    }
    counts = {"seeds": len(gained[method]), "labels": labels, "test_images": images}
    return Line("HybridRepair", text.strip(), own.low > 0, differences, counts)


def _over_images(runs: Sequence[Mapping[str, Any]]) -> Interval:
    """Return the gain in points over the test images of several runs."""
    counts = (sum(run[name] for run in runs) for name in ("fixed", "broken", "test_images"))
    return metrics.counted_difference(*counts).scaled(100)


def _points(difference: Interval) -> str:
    """Spell a difference in points and its interval."""
    return f"{difference.estimate:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
