"""The report of modularize: what modules keep, cost and answer together, as tables, plots and JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from deeppatch.cli.modularize.analysing import Analysis
from deeppatch.data import views
from deeppatch.metrics import accuracy
from deeppatch.modular.composition import dissimilarity
from deeppatch.modular.extract import multiply_adds
from deeppatch.modular.modules import Modules
from deeppatch.progress import info
from deeppatch.report import module_plots
from deeppatch.training import predict


def report(analysis: Analysis, modules: Modules, history: pd.DataFrame) -> dict[str, Any]:
    """Extract and compose the modules, measure on test, leave tables and plots, and return the metrics."""
    context, stage = analysis.context, analysis.context.stage
    names, layers = context.source.classes, analysis.layers
    test = views.clean(context.splits.test, context.options.batch_size)
    composed = modules.composed(analysis.model, context.example)
    right = {
        "strong": accuracy(predict(analysis.model, test, label="strong model"), test.labels),
        "composed": accuracy(predict(composed, test, label="composed modules"), test.labels),
    }
    one = analysis.model.normalize(context.example[:1])
    whole = multiply_adds(analysis.model.network, one)
    costs = [multiply_adds(network, one) for network in composed.networks()]
    shares = modules.shares()
    tied = torch.cat([torch.full((layer.kernels,), float(len(layer.convs))) for layer in layers])
    masks = [modules.kept[layer.name] for layer in layers]
    unlike = dissimilarity(torch.cat(masks, 1), tied)
    mean_unlike = unlike.sum().item() / max(1, len(names) * (len(names) - 1))

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
    count = "epoch" if "loss" in history else "generation"
    history.insert(0, count, range(1, len(history) + 1) if count == "epoch" else range(len(history)))
    stage.write_table("history.csv", history)

    title = f"{context.options.model} on {context.source.name}"
    parts = torch.stack([mask.float().mean(1) for mask in masks], 1).tolist()
    stage.write("kept.png", module_plots.kept(parts, [layer.short_name for layer in layers], names, title))
    title_shared = f"kernels that two modules share: {title}, mean dissimilarity {100 * mean_unlike:.1f} %"
    stage.write("overlap.png", module_plots.overlap((1 - unlike).tolist(), names, title_shared))
    val = views.clean(context.splits.val, context.options.batch_size)
    strong = accuracy(predict(analysis.model, val, label="strong model"), val.labels)
    stage.write("search.png", module_plots.search(history, strong, f"{title}, {context.options.method}"))
    facts = {
        "method": context.options.method,
        "test_images": len(test.labels),
        "limit": context.options.limit,
        "strong_accuracy_percent": 100 * right["strong"],
        "composed_accuracy_percent": 100 * right["composed"],
        "kernels": int(tied.sum()),
        "kernels_kept_percent": 100 * shares.mean().item(),
        "multiply_adds": whole,
        "multiply_adds_percent": 100 * sum(costs) / len(costs) / whole,
        "mean_dissimilarity_percent": 100 * mean_unlike,
        "chosen": int(history.loc[history["best"], count].iloc[0]),
        "sensitive_layers": [layers[place].name for place in analysis.sensitive],
        "candidates_evaluated": int(history["evaluated"].sum()) if "evaluated" in history else None,
    }
    shown = table[["class", "kernels_kept_percent", "multiply_adds_percent"]]
    print(shown.to_string(index=False, float_format="%.1f"))
    info(f"test accuracy {100 * right['strong']:.2f} % strong, {100 * right['composed']:.2f} % composed")
    cost = f"{facts['multiply_adds_percent']:.1f} % of the multiply-adds"
    info(
        f"modules keep {facts['kernels_kept_percent']:.1f} % of {facts['kernels']} kernels and {cost} in the mean; "
        f"written to {stage.folder}"
    )
    return facts
