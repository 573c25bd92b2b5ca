"""Choose which images to label, label them, and repair a model with them (HybridRepair): about 30 s on two cores.

PYTHONPATH=src python examples/labels.py
"""

from __future__ import annotations

import dataclasses

import torch

import deeppatch as dp
from deeppatch.hybrid.training_data import Recipe as Relearning
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe


def main() -> None:
    """Train on few images of few classes, and repair with labels of a pool that has them all."""
    digits = dp.load_data("digits")
    labels = digits.train.labels
    rare = (labels >= 7) & (torch.arange(len(labels)) % 10 != 0)  # a tenth of the images of three classes
    seen = (torch.arange(len(labels)) % 3 == 0) & ~rare
    data = dataclasses.replace(digits, train=digits.train.take(seen.nonzero().flatten()))
    pool = digits.train.take((~seen).nonzero().flatten())
    model, _history = train_classifier(dp.load_classifier("resnet8", 10), data, Recipe(epochs=8, lr=0.1, batch_size=64))

    selection = dp.choose_labels(model, pool.pixels, data, budget="10%", method="badge")
    print(f"label these {len(selection.bought)} images of {len(pool)}: {selection.bought[:8].tolist()} ...")
    selection = selection.with_labels(pool.labels[selection.bought])  # a person's work; here they are known
    repaired = dp.relearn(
        model, data, pool.pixels, selection, epochs=8, lr=0.02, use="labels", recipe=Relearning(batch=32)
    )
    print(dp.evaluate({"before": model, "repaired": repaired}, data).round(2).to_string())


if __name__ == "__main__":
    main()
