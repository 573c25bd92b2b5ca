"""The normalisation doctor: a wrong mean or standard deviation is the most common silent error in this field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.progress import info
from deeppatch.training import accuracy, mean_loss, predict
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS

MARGIN_PERCENT = 2.0


def examine(context: Context, model: Classifier, measured: float, published: float) -> dict[str, Any] | None:
    """Where clean accuracy (percent) is far under the published one, try the common constants on val.

    Published networks have seen val in training and are nearly always right there, so the constants with the lowest
    cross entropy are named, not those with the highest accuracy.
    """
    noise = 3 * (published * (100 - published) / len(context.splits.test)) ** 0.5
    if measured >= published - max(MARGIN_PERCENT, noise):
        return None
    info(f"doctor: {measured:.2f} % is far under the published {published:.2f} %; trying other constants on val")
    val = views.clean(context.splits.val, context.options.batch_size)
    tried = {}
    for name, (mean, std) in COMMON_STATS.items():
        other = context.place(Classifier(model.network, mean, std))
        right, loss = 100 * accuracy(predict(other, val), val.labels), mean_loss(other, val)
        tried[name] = {"accuracy_percent": right, "cross_entropy": loss}
        info(f"doctor: {right:6.2f} %, cross entropy {loss:.4f}  {name}: mean {spaced(mean)}, std {spaced(std)}")
    best = min(tried, key=lambda name: tried[name]["cross_entropy"])
    mean, std = COMMON_STATS[best]
    advice = f"--mean {spaced(mean)} --std {spaced(std)}"
    if tried[best]["accuracy_percent"] < published - MARGIN_PERCENT - noise:
        advice = "none of them explains it: check that the weights belong to this network and data set"
    info(f"doctor: best on val: {best}; {advice}")
    return {"published_percent": published, "val": tried, "best": best, "advice": advice}


def spaced(values: Iterable[float]) -> str:
    """Write numbers as they are typed on the command line."""
    return " ".join(f"{value:.4g}" for value in values)
