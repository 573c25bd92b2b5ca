"""decompose sweep: accuracy against the number of features that each class reads."""

from __future__ import annotations

import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.cli.decompose.tuning import feature_epochs
from deeppatch.cli.features import Subject, head_accuracy
from deeppatch.decompose.head import DecomposedHead
from deeppatch.decompose.influence import measure
from deeppatch.decompose.tune import tune
from deeppatch.errors import UserError
from deeppatch.progress import info
from deeppatch.report import plots


def sweep(context: Context, model: Subject) -> None:
    """Write accuracy on test against k: extracted for each k, decomposed, and its head fine-tuned."""
    if context.already_finished():
        return
    options, width = context.options, model.whole.in_features
    ks = [k for k in options.k if k <= width]
    if not ks:
        raise UserError(f"-k {min(options.k)}: {options.model} has {width} features; give at most {width}")
    epochs, test = feature_epochs(context, model.features("train")), model.features("test")
    on_val, on_test = head_accuracy(model.features("val")), head_accuracy(test)
    rows = []
    for influence in measure(model.training_features(), len(context.source.classes), ks):
        head = DecomposedHead.from_linear(model.whole, influence.indices())
        tuned, _ = tune(head, epochs, on_val, lr=options.lr, label=f"k = {influence.k}")
        rows.append(
            {
                "k": influence.k,
                "multiply_adds": head.multiply_adds,
                "decomposed_percent": 100 * on_test(head),
                "finetuned_percent": 100 * on_test(tuned),
            }
        )
    whole = 100 * on_test(model.whole)
    frame = pd.DataFrame(rows)
    context.stage.write_table("sweep.csv", frame)
    context.stage.write_json(
        "sweep.json",
        {
            "whole_layer_percent": whole,
            "test_images": len(test),
            "limit": options.limit,
            "epochs": options.max_epoch,
            "rows": rows,
        },
    )
    title = f"{options.model} on {context.source.name}, {len(test)} test images, heads tuned {options.max_epoch} epochs"
    context.stage.write("sweep.png", plots.accuracy_against_k(frame, whole, title))
    context.stage.finish()
    print(frame.to_string(index=False, float_format="%.2f"))
    info(f"whole layer: {whole:.2f} %; written to {context.stage.folder}")
