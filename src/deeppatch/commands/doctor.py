"""The normalisation doctor: a wrong mean or standard deviation is the most common silent error in this field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deeppatch.commands.context import Context
from deeppatch.data import views
from deeppatch.progress import info
from deeppatch.training import accuracy, predict
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS

MARGIN_PERCENT = 2.0


def examine(context: Context, model: Classifier, measured: float, published: float) -> dict[str, Any] | None:
    """Normalisation doctor: where clean accuracy is far under the published one, try the common constants on val."""
    noise = 3 * (published * (100 - published) / len(context.splits.test)) ** 0.5
    if measured >= published - max(MARGIN_PERCENT, noise):
        return None
    info(f"doctor: {measured:.2f} % is far under the published {published:.2f} %; trying other constants on val")
    val = views.clean(context.splits.val, context.blur, context.options.batch_size)
    tried = {}
    for name, (mean, std) in COMMON_STATS.items():
        other = context.place(Classifier(model.network, mean, std))
        tried[name] = 100 * accuracy(predict(other, val), val.labels)
        info(f"doctor: {tried[name]:6.2f} %  {name}: mean {spaced(mean)}, std {spaced(std)}")
    best = max(tried, key=lambda name: tried[name])
    mean, std = COMMON_STATS[best]
    advice = f"--mean {spaced(mean)} --std {spaced(std)}"
    if tried[best] < published - MARGIN_PERCENT - noise:
        advice = "none of them explains it: check that the weights belong to this network and data set"
    info(f"doctor: best on val: {best}; {advice}")
    return {"published_percent": published, "val_accuracy_percent": tried, "best": best, "advice": advice}


def spaced(values: Iterable[float]) -> str:
    """Write numbers as they are typed on the command line."""
    return " ".join(f"{value:.4g}" for value in values)
