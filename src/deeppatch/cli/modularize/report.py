"""The report of modularize: kernels, costs and accuracy of the modules, as tables, plots and JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.metrics import accuracy
from deeppatch.modular.analysis import Analysis
from deeppatch.modular.extract import multiply_adds
from deeppatch.modular.modules import Modules
from deeppatch.modular.sensitivity import RATIOS
from deeppatch.progress import info
from deeppatch.report import module_plots
from deeppatch.training import predict
from deeppatch.zoo.classifier import Classifier


def sensitivity(context: Context, analysis: Analysis) -> None:
    """Write and print the composed accuracy when modules keep a share of one layer."""
    table = pd.DataFrame(100 * analysis.sensitivity, columns=[f"{ratio:g}" for ratio in RATIOS])
    table.insert(0, "layer", [layer.name for layer in analysis.layers])
    sensitive = analysis.sensitive(*context.options.sensitive)
    table["sensitive"] = [index in sensitive for index in range(len(analysis.layers))]
    context.stage.write_table("sensitivity.csv", table)
    count = min(context.options.sensitivity_images, len(context.splits.val))
    info(f"composed accuracy in percent when modules keep a share of one layer, {count} val images:")
    print(table.to_string(index=False, float_format="%.1f"))


def modules(context: Context, model: Classifier, data: Data, analysis: Analysis, modules: Modules) -> dict[str, Any]:
    """Extract and compose the modules, measure them on test, write tables and plots, and return the metrics."""
    stage, names, layers = context.stage, data.classes, analysis.layers
    test = views.clean(data.test, context.options.batch_size)
    composed = modules.composed(model, data.example)
    strong_accuracy = accuracy(predict(model, test, label="strong model"), test.labels)
    composed_accuracy = accuracy(predict(composed, test, label="composed modules"), test.labels)
    one = model.normalize(data.example[:1])
    whole = multiply_adds(model.network, one)
    costs = [multiply_adds(network, one) for network in composed.networks()]
    shares, dissimilarity = modules.shares(), modules.dissimilarity()
    masks = [modules.kept[layer.name] for layer in layers]
    mean_dissimilarity = dissimilarity.sum().item() / max(1, len(names) * (len(names) - 1))

    table = pd.DataFrame(
        {
            "class": names,
            **{layer.name: mask.sum(1).numpy() for layer, mask in zip(layers, masks, strict=True)},
            "kernels_kept_percent": 100 * shares.numpy(),
            "multiply_adds": costs,
            "multiply_adds_percent": [100 * cost / whole for cost in costs],
        }
    )
    stage.write_table("modules.csv", table)
    history = modules.history
    assert history is not None
    stage.write_table("history.csv", history)

    title = f"{context.options.model} on {data.name}"
    parts = torch.stack([mask.float().mean(1) for mask in masks], 1).tolist()
    stage.write("kept.png", module_plots.kept(parts, [layer.short_name for layer in layers], names, title))
    title_shared = f"kernels that two modules share: {title}, mean dissimilarity {100 * mean_dissimilarity:.1f} %"
    stage.write("overlap.png", module_plots.overlap((1 - dissimilarity).tolist(), names, title_shared))
    val = views.clean(data.val, context.options.batch_size)
    strong = accuracy(predict(model, val, label="strong model"), val.labels)
    stage.write("search.png", module_plots.search(history, strong, f"{title}, {context.options.method}"))
    facts = {
        "method": context.options.method,
        "test_images": len(test.labels),
        "limit": context.options.limit,
        "strong_accuracy_percent": 100 * strong_accuracy,
        "composed_accuracy_percent": 100 * composed_accuracy,
        "kernels": int(analysis.convolutions_per_kernel.sum()),
        "kernels_kept_percent": 100 * shares.mean().item(),
        "multiply_adds": whole,
        "multiply_adds_percent": 100 * sum(costs) / len(costs) / whole,
        "mean_dissimilarity_percent": 100 * mean_dissimilarity,
        "chosen": int(history.loc[history["best"], history.columns[0]].iloc[0]),
        "sensitive_layers": [layers[index].name for index in analysis.sensitive(*context.options.sensitive)],
        "candidates_evaluated": int(history["evaluated"].sum()) if "evaluated" in history else None,
    }
    shown = table[["class", "kernels_kept_percent", "multiply_adds_percent"]]
    print(shown.to_string(index=False, float_format="%.1f"))
    info(f"test accuracy {100 * strong_accuracy:.2f} % strong, {100 * composed_accuracy:.2f} % composed")
    cost = f"{facts['multiply_adds_percent']:.1f} % of the multiply-adds"
    info(
        f"modules keep {facts['kernels_kept_percent']:.1f} % of {facts['kernels']} kernels and need {cost} on average; "
        f"written to {stage.folder}"
    )
    return facts
