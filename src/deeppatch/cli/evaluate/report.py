"""The report of evaluate: accuracies, changes and routing as JSON, CSV, plot and printed tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from deeppatch import metrics
from deeppatch.cli.context import Context
from deeppatch.cli.degradation_report import write_degradations
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.patching.comparison import PRETRAINED, SWITCHED, Comparison
from deeppatch.patching.seen import Seen
from deeppatch.patching.switch import Switch
from deeppatch.progress import info
from deeppatch.report import degradations, plots, scores
from deeppatch.report.verdict import verdict

MEAN = "blurred"


@dataclass(frozen=True)
class Results:
    """What evaluate reports.

    Args:
        comparison: All networks on test.
        unseen: The same on held-out degradations, which are reported apart.
        switched: The switched model.
        seen: Whether the network has seen the calibration images; None where that was not asked.
        neighbours: The shares of right neighbours of all networks, in percent; None where they were not asked for.
    """

    comparison: Comparison
    unseen: Comparison | None
    switched: Switch
    seen: Seen | None = None
    neighbours: pd.DataFrame | None = None


def show_calibration(facts: dict[str, Any], images: str = "val", seen: Seen | None = None) -> None:
    """Log the bounds that the calibration images show, or that they show none because the network has seen them."""
    if "clean_drop_bound" in facts:
        bound, wanted = 100 * facts["clean_drop_bound"], 100 * facts["max_clean_drop"]
        lost = f"{facts['clean_losses']} of {facts['clean_images']} clean {images} images lost"
        info(f"router: {lost}; clean drop at most {bound:.2f} points (95 %), wanted {wanted:g}")
        if not facts["bound_attained"]:
            least = 100 * facts["smallest_bound"]
            info(
                f"router: with so few images the bound is at least {least:.2f} points, so no loss on {images} was "
                "allowed"
            )
    if "flips_bound" in facts:
        bound, wanted = 100 * facts["flips_bound"], 100 * facts["max_flips"]
        broken = f"{facts['flips']} of {facts['mixed_images']} images of a mixed stream newly wrong"
        info(f"router: {broken}; at most {bound:.2f} % (95 %), wanted {wanted:g}")
    if seen is not None and seen.seen:
        info(f"router: {told(seen, images)}")


def told(seen: Seen, images: str) -> str:
    """Say that the network has seen the images that a bound was shown on, and what to do."""
    accuracy, other = 100 * seen.accuracy, 100 * seen.unseen_accuracy
    sure = f"mean confidence {100 * seen.confidence:.2f} %"
    if seen.unseen_confidence is not None:
        sure += f" against {100 * seen.unseen_confidence:.2f} %"
    return (
        f"the network has seen the {images} images, or they are easier than others: accuracy {accuracy:.2f} % there, "
        f"{other:.2f} % on test, {sure}. So the bound does not hold; calibrate on other images, as with "
        "--calibrate_on test:1000"
    )


def write_report(context: Context, results: Results) -> None:
    """Write the router, metrics.json, metrics.csv, router.csv, accuracy.png and the record; print the tables."""
    comparison, unseen, switched = results.comparison, results.unseen, results.switched
    options, stage = context.options, context.stage
    assert switched.router is not None
    accuracy, changed = comparison.accuracies(MEAN), comparison.changes(MEAN)
    routing_metrics, images = comparison.router_metrics(MEAN), comparison.images
    stage.write_json(
        "metrics.json",
        {
            "dataset": context.source.name,
            "model": options.model,
            "test_images": images,
            "limit": options.limit,
            "switch": options.switch,
            "router": switched.router.kind,
            "accuracy_percent": accuracy,
            "change_against_pretrained_percent": changed,
            "intervals": metrics.OF_CHANGES,
            "difference_points": {
                pair: {view: asdict(each) for view, each in views.items()}
                for pair, views in comparison.differences(MEAN).items()
            },
            "routing": routing_metrics,
            "calibration": _calibration(context, results),
            **_routes(comparison, switched),
            **_held_out(unseen, switched),
            **_neighbours(context, results),
        },
    )

    table = scores.table(accuracy)
    stage.write_table("metrics.csv", scores.with_changes(table, changed))
    router_table = scores.routing_table(routing_metrics)
    stage.write_table("router.csv", router_table)
    by_type = write_degradations(
        context,
        {name: each.by_level for name, each in comparison.correct.items()},
        None if unseen is None else {name: each.by_level for name, each in unseen.correct.items()},
        PRETRAINED,
    )
    views = metrics.view_names(comparison.level_names)
    curves = {name: [row[view] for view in views] for name, row in accuracy.items()}
    title = f"{options.model} on {context.source.name}, {images} test images"
    stage.write("accuracy.png", _plot(context, curves, title))
    stage.write("router.safetensors", switched.router.to_bytes())
    stage.finish()

    print(scores.format_table(table) if by_type is None else by_type)
    print("\nrepaired (+, wrong to correct) and broken (-, correct to wrong) against pretrained, percent of all images")
    print(scores.format_changes(changed) if by_type is None else _changes_by_type(comparison, unseen))
    print(f"\nrouter: {switched.router.kind}, one decision a {options.switch}")
    print(scores.format_table(router_table) if by_type is None else _routing_by_type(comparison, unseen))
    if results.neighbours is not None:
        print(f"\n{options.neighbours} neighbours of each test image at each severity, in percent")
        print(results.neighbours.to_string(index=False, float_format="%.2f"))
    for line in [metrics.OF_CHANGES, *_remarks(context, results)]:
        print(f"\n{line}")
    info(judged(context, comparison))
    info(f"accuracy in percent on {images} test images; written to {stage.folder}")


def judged(context: Context, comparison: Comparison) -> str:
    """Return the verdict on the switched model, which warns where the repair loses."""
    gained = comparison.differences(MEAN)[f"{SWITCHED} against {PRETRAINED}"]
    on = MEAN if isinstance(context.corruption, GaussianBlur) else "degraded"
    return str(verdict(SWITCHED, gained["clean"], gained[MEAN], on=on, base=PRETRAINED))


def _calibration(context: Context, results: Results) -> dict[str, Any]:
    """Return what metrics.json says of the calibration."""
    if context.options.router_file is not None:
        return {"router_file": str(context.found["router"].path)}
    seen = results.seen
    facts = {**results.switched.calibration, "calibrated_on": context.options.calibrate_on}
    if seen is None:
        return facts
    remark = {"remark": told(seen, context.options.calibrate_on)} if seen.seen else {}
    return {**facts, "images_seen": seen.facts(), **remark}


def _neighbours(context: Context, results: Results) -> dict[str, Any]:
    """Write neighbours.csv, and return what metrics.json says of it; nothing where it was not asked for."""
    if results.neighbours is None:
        return {}
    context.stage.write_table("neighbours.csv", results.neighbours)
    return {
        "neighbours": context.options.neighbours,
        "neighbours_percent": results.neighbours.to_dict("records"),
    }


def _routes(comparison: Comparison, switched: Switch) -> dict[str, Any]:
    """Return what metrics.json says of several networks, and of samples that resemble nothing seen."""
    several = {"answered_percent": comparison.answered_percent()} if len(comparison.experts) > 2 else {}
    told_apart = switched.router is not None and switched.router.density is not None
    return several | ({"alarms_percent": comparison.alarm_metrics(MEAN)} if told_apart else {})


def _remarks(context: Context, results: Results) -> list[str]:
    """Return what stands below the tables: alarms, and that a bound does not hold."""
    lines = []
    router = results.switched.router
    if router is not None and router.density is not None:
        for name, each in (("", results.comparison), (" that were held out", results.unseen)):
            found = each.alarm_metrics(MEAN) if each else None
            if found is None:
                continue
            shares = "; ".join(
                f"where {share} are degraded: precision {_number(found['precision'][share])}, recall {recall:.2f}"
                for share, recall in found["recall"].items()
            )
            rates = ", ".join(f"{view} {rate:.2f}" for view, rate in found["alarm_rate"].items())
            lines.append(
                f"samples unlike anything seen, in percent, for degradations{name} (the original network answers "
                f"them): {rates}; {shares}"
            )
    if results.seen is not None and results.seen.seen:
        lines.append(told(results.seen, context.options.calibrate_on))
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _held_out(unseen: Comparison | None, switched: Switch) -> dict[str, Any]:
    """Return what metrics.json says of held-out degradations; nothing where there are none."""
    if unseen is None:
        return {}
    found = {
        "levels": list(unseen.level_names),
        "accuracy_percent": unseen.accuracies(),
        "change_against_pretrained_percent": unseen.changes(),
        "difference_points": {
            pair: {view: asdict(each) for view, each in views.items()} for pair, views in unseen.differences().items()
        },
        "routing": unseen.router_metrics(),
        **_routes(unseen, switched),
    }
    return {"held_out": found}


def _changes_by_type(comparison: Comparison, unseen: Comparison | None) -> str:
    """Format repair and break rates, means of each type over its severities."""
    held_out = () if unseen is None else unseen.level_names
    both = []
    for measure in ("repair", "break"):
        rates: dict[str, dict[str, float]] = {}
        for each, levels in ((comparison, ("clean", *comparison.level_names)), (unseen, held_out)):
            for name, found in (each.changes() if each else {}).items():
                rates.setdefault(name, {}).update({level: found[measure][level] for level in levels})
        both.append(degradations.of_levels_by_type(rates, held_out).set_index("degradation"))
    repaired, broken = both
    cells = {
        name: [f"+{up:.1f} -{down:.1f}" for up, down in zip(repaired[name], broken[name], strict=True)]
        for name in repaired
    }
    return pd.DataFrame({"degradation": list(repaired.index), **cells}).to_string(index=False)


def _routing_by_type(comparison: Comparison, unseen: Comparison | None) -> str:
    """Format AUROC and wrongly routed samples, means of each type over its severities."""
    held_out = () if unseen is None else unseen.level_names
    columns: dict[str, dict[str, float]] = {"auroc": {}, "routed_wrongly_percent": {}}
    for each in filter(None, (comparison, unseen)):
        found = each.router_metrics()
        columns["auroc"] |= {level: found["auroc"][level] for level in each.level_names}
        missed = {level: found["missed_switch_percent"][level] for level in each.level_names}
        columns["routed_wrongly_percent"] |= {"clean": found["false_switch_percent"], **missed}
    return scores.format_table(degradations.of_levels_by_type(columns, held_out))


def _plot(context: Context, curves: dict[str, list[float]], title: str) -> bytes:
    if isinstance(context.corruption, GaussianBlur):
        return plots.accuracy_against_blur(curves, context.corruption.sigmas, title)
    return plots.accuracy_by_level(curves, context.corruption.level_names, title)
