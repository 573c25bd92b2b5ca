"""decompose validate, essential and mutual-info: what a set of features is worth."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, nn

from deeppatch.cli.context import Context
from deeppatch.cli.features import Subject, head_accuracy
from deeppatch.cli.index_sets import gate_sets, gates, named_sets
from deeppatch.decompose import index_sets
from deeppatch.decompose.essential import Essential
from deeppatch.decompose.essential import essential as disturb
from deeppatch.decompose.head import DecomposedHead, microseconds
from deeppatch.decompose.mutual_information import mutual_information as between
from deeppatch.progress import info
from deeppatch.report import plots

TIMED_BATCH = 256


def validate(context: Context, model: Subject) -> None:
    """Write accuracy on test, multiply-adds and time of the whole layer and of each decomposed one."""
    sets = named_sets(context, model)
    heads: dict[str, nn.Module] = {"whole layer": model.whole}
    heads |= {name: DecomposedHead.from_linear(model.whole, indices) for name, indices in sets.items()}
    test = model.features("test")
    measured = head_accuracy(test)
    rows = [
        {
            "head": name,
            "features_a_class": width(head),
            "accuracy_percent": 100 * measured(head),
            "multiply_adds": len(context.source.classes) * width(head),
        }
        for name, head in heads.items()
    ]
    frame = pd.DataFrame(rows)
    batch = test.values[:TIMED_BATCH]
    times = {name: microseconds(head, batch) for name, head in heads.items()}
    context.stage.write_table("metrics.csv", frame)
    context.stage.write_json("metrics.json", {"test_images": len(test), "limit": context.options.limit, "heads": rows})
    context.stage.write_json("timing.json", {"batch": len(batch), "microseconds_a_batch": times})
    context.stage.finish()
    print(frame.assign(microseconds_a_batch=list(times.values())).to_string(index=False, float_format="%.2f"))
    info(f"{len(test)} test images, times for a batch of {len(batch)}; written to {context.stage.folder}")


def width(head: nn.Module) -> int:
    """Return how many features each class reads."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def essential(context: Context, model: Subject) -> None:
    """Write how many images of each class stay right under noise at its features, and at all others."""
    sets = {name: (model, indices) for name, indices in named_sets(context, model).items()}
    if context.options.csg:
        other, found = gates(context, model, context.options.csg)
        for k in sorted({indices.shape[1] for _, indices in sets.values()}):
            sets |= {f"{name}, k={k}": (other, indices) for name, indices in gate_sets(found, k).items()}
    options, names = context.options, context.source.classes
    counts = {
        name: disturb(owner.features("test"), owner.whole, indices, draws=options.draws, seed=options.seed)
        for name, (owner, indices) in sets.items()
    }
    frame = pd.concat([by_class(name, found, names) for name, found in counts.items()], ignore_index=True)
    context.stage.write_table("essential.csv", frame)
    totals = {name: total(found) for name, found in counts.items()}
    context.stage.write_json(
        "essential.json",
        {
            "draws": options.draws,
            "limit": options.limit,
            "sets": totals,
            "by_class": {
                name: list(rows) for name, rows in ((n, f.to_dict("records")) for n, f in frame.groupby("set"))
            },
        },
    )
    title = f"{options.model} on {context.source.name}, test, mean of {options.draws} draws"
    context.stage.write("essential.png", plots.essential(frame, title))
    context.stage.finish()
    print(pd.DataFrame(totals).T.to_string(float_format="%.2f"))
    info(f"accuracy of all classes in percent; by class and draw in {context.stage.folder}")


def by_class(name: str, found: Essential, names: tuple[str, ...]) -> pd.DataFrame:
    """Return right answers of each class: untouched, and mean and spread (standard deviation) over draws of noise."""
    at, elsewhere = found.noise_at.double(), found.noise_elsewhere.double()
    return pd.DataFrame(
        {
            "set": name,
            "class": names,
            "images": found.images.tolist(),
            "whole": found.whole.tolist(),
            "noise_at": at.mean(0).tolist(),
            "noise_at_spread": at.std(0, correction=0).tolist(),
            "noise_elsewhere": elsewhere.mean(0).tolist(),
            "noise_elsewhere_spread": elsewhere.std(0, correction=0).tolist(),
        }
    )


def total(found: Essential) -> dict[str, float]:
    """Return the same over all classes, in percent of their images."""
    images = found.images.sum()
    shares = {"noise_at": found.noise_at, "noise_elsewhere": found.noise_elsewhere}
    rows = {"whole": (100 * found.whole.sum() / images).item()}
    for name, counts in shares.items():
        percent = 100 * counts.sum(1).double() / images
        rows |= {name: percent.mean().item(), f"{name}_spread": percent.std(correction=0).item()}
    return rows


def mutual_information(context: Context, model: Subject) -> None:
    """Write the mean mutual information of all ordered pairs of classes, for every set of features."""
    sets = named_sets(context, model)
    if context.options.csg:
        _, found = gates(context, model, context.options.csg)
        for k in sorted({indices.shape[1] for indices in sets.values()}):
            sets |= {f"{name}, k={k}": indices for name, indices in gate_sets(found, k).items()}
    rows: list[dict[str, Any]] = []
    for name, indices in sets.items():
        pairs = between(index_sets.membership(indices, model.whole.in_features))
        rows.append({"set": name, "k": indices.shape[1], "mean_mutual_information_nats": pairs.mean().item()})
    context.stage.write_json("mutual-info.json", {"classes": len(context.source.classes), "sets": rows})
    frame = pd.DataFrame(rows).sort_values("k", kind="stable")
    context.stage.write("mutual-info.csv", frame.to_csv(index=False).encode())
    context.stage.finish()
    print(frame.to_string(index=False, float_format="%.6f"))
    info(f"lower: the classes share less; written to {context.stage.folder}")
