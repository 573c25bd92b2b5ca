"""The report of modularize: kernels, costs and accuracy of the modules, as tables, plots and JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.cli.pretrain.report import write_weights
from deeppatch.modular.analysis import Analysis
from deeppatch.modular.measuring import ModuleMeasurements
from deeppatch.progress import info
from deeppatch.report import module_plots
from deeppatch.zoo.classifier import Classifier


def sensitivity(context: Context, analysis: Analysis) -> None:
    """Write and print the composed accuracy when modules keep a share of one layer."""
    table = analysis.table(*context.options.sensitive)
    context.stage.write_table("sensitivity.csv", table)
    count = min(context.options.sensitivity_images, len(context.splits.val))
    info(f"composed accuracy in percent when modules keep a share of one layer, {count} val images:")
    print(table.to_string(index=False, float_format="%.1f"))


def tuned(context: Context, model: Classifier, table: pd.DataFrame) -> None:
    """Write the network whose kernels were trained through its modules, and the epochs of this."""
    write_weights(context, model)
    context.stage.write_table("tuning.csv", table)


def modules(
    context: Context, analysis: Analysis, history: pd.DataFrame, found: ModuleMeasurements, untuned: float | None
) -> dict[str, Any]:
    """Write and print the tables and plots of modules and of their search, and return the metrics.

    `untuned` is the accuracy of the network that was split, where its kernels were trained through the modules then.
    """
    options, stage, names = context.options, context.stage, found.classes
    table = found.table()
    stage.write_table("modules.csv", table)
    stage.write_table("history.csv", history)

    title = f"{options.model} on {context.source.name}"
    layer_names = [layer.short_name for layer in found.layers]
    title_kept = f"kernels that the module of each class keeps: {title}"
    stage.write("kept.png", module_plots.kept(found.layer_shares().tolist(), layer_names, names, title_kept))
    mean_dissimilarity = 100 * found.mean_dissimilarity
    title_shared = f"kernels that two modules share: {title}, mean dissimilarity {mean_dissimilarity:.1f} %"
    stage.write("overlap.png", module_plots.overlap((1 - found.dissimilarity).tolist(), names, title_shared))
    stage.write(
        "search.png",
        module_plots.search(history, found.val_accuracy, f"search of modules by {options.method}: {title}"),
    )
    facts: dict[str, Any] = {
        "method": options.method,
        "test_images": found.test_images,
        "limit": options.limit,
        "strong_accuracy_percent": 100 * found.strong_accuracy,
        "composed_accuracy_percent": 100 * found.composed_accuracy,
        "kernels": found.kernels,
        "kernels_kept_percent": 100 * found.mean_share,
        "multiply_adds": found.multiply_adds,
        "multiply_adds_percent": found.multiply_adds_percent,
        "mean_dissimilarity_percent": mean_dissimilarity,
        "chosen": int(history.loc[history["best"], history.columns[0]].iloc[0]),
        "sensitive_layers": [analysis.layers[index].name for index in analysis.sensitive(*options.sensitive)],
        "candidates_evaluated": int(history["evaluated"].sum()) if "evaluated" in history else None,
    }
    shown = table[["class", "kernels_kept_percent", "multiply_adds_percent"]]
    print(shown.to_string(index=False, float_format="%.1f"))
    if untuned is not None:
        facts["split_network_accuracy_percent"] = 100 * untuned
    before = "" if untuned is None else f"{100 * untuned:.2f} % of the network that was split; after tuning "
    info(
        f"test accuracy {before}{facts['strong_accuracy_percent']:.2f} % strong, "
        f"{facts['composed_accuracy_percent']:.2f} % composed"
    )
    cost = f"{facts['multiply_adds_percent']:.1f} % of the multiply-adds"
    info(
        f"modules keep {facts['kernels_kept_percent']:.1f} % of {facts['kernels']} kernels and need {cost} on average; "
        f"written to {stage.folder}"
    )
    return facts
