"""Joins of a weak model and a module: ranges of scores, joined scores, a trained join, and metrics of a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.distributed.data_parallel import Batch
from deeppatch.metrics import accuracy
from deeppatch.modular.join_names import parse
from deeppatch.runtime import generator
from deeppatch.training import cross_entropy, fit, predict, sgd

EPOCHS, LEARNING_RATE, BATCH_SIZE = 20, 0.05, 128  # of calibration
WHISKER = 1.5  # interquartile ranges beyond the quartiles


@dataclass(frozen=True)
class Range:
    """A linear map of a module's scores: `low` becomes 0 and `high` becomes 1; scores are not clipped."""

    low: float
    high: float

    def __call__(self, scores: Tensor) -> Tensor:
        """Map scores (N,) to confidences (N,); if low and high are equal, scores from there on become 1, others 0."""
        if self.high == self.low:
            return (scores >= self.low).to(scores.dtype)
        return (scores - self.low) / (self.high - self.low)


def min_max(scores: Tensor) -> Range:
    """Return the range from the lowest to the highest score."""
    return Range(scores.min().item(), scores.max().item())


def percentile(scores: Tensor, low: float = 10, high: float = 90) -> Range:
    """Return the range between two percentiles, linear between scores."""
    predicted = torch.quantile(scores, torch.tensor([low, high], dtype=scores.dtype, device=scores.device) / 100)
    return Range(*predicted.tolist())


def outlier(scores: Tensor) -> Range:
    """Return the range from 1.5 interquartile ranges below the first quartile to 1.5 above the third."""
    quartiles = percentile(scores, 25, 75)
    reach = WHISKER * (quartiles.high - quartiles.low)
    return Range(quartiles.low - reach, quartiles.high + reach)


def norm(scores: Tensor) -> Range:
    """Return the range from the mean to one standard deviation above it, which maps scores to z-scores."""
    mean = scores.mean().item()
    return Range(mean, mean + scores.std(correction=0).item())


RANGES: dict[str, Callable[..., Range]] = {
    "min_max": min_max, "percentile": percentile, "outlier": outlier, "norm": norm,
}  # fmt: skip
JOINS = (*RANGES, "calibrate", "direct")


def fit_range(join: str, scores: Tensor) -> Range:
    """Return the range of a join for the scores (N,) of images of the module's class (Qi et al., ASE 2022).

    `join` is a key of RANGES; percentile may be followed by two percentiles, as in percentile:5,95.
    """
    name, numbers = parse(join)
    return RANGES[name](scores.double(), *numbers)


def join_scores(logits: Tensor, confidence: Tensor) -> Tensor:
    """Return a weak model's scores (N, K) with a module's for the last class (Qi et al., ASE 2022).

    `logits` (N, K) are the weak model's: its probabilities of the other classes stay as they are, that of the last is
    dropped for the module's `confidence` (N,). The class is the argmax.
    """
    return torch.cat([F.softmax(logits, 1)[:, :-1], confidence.unsqueeze(1).to(logits.dtype)], 1)


@dataclass(frozen=True)
class JoinData:
    """The outputs of a weak model and a module for labelled images: logits (N, K), scores (N,), labels (N,)."""

    logits: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        """The inputs of a trained join, (N, K): the logits of the other classes, then the module's score."""
        return torch.cat([self.logits[:, :-1], self.scores.unsqueeze(1).to(self.logits.dtype)], 1)


class Calibrated(nn.Module):
    """A linear layer from the other classes' logits and the module's score, standardised, to the classes."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Tensor, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("std", inputs.std(0, correction=0).clamp(min=1e-6))
        self.linear = nn.Linear(inputs.shape[1], inputs.shape[1])
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator(seed, "calibrate"))
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, K) to logits (N, K)."""
        logits: Tensor = self.linear((inputs - self.mean) / self.std)
        return logits


def calibrate(train: JoinData, val: JoinData, seed: int) -> Calibrated:
    """Return a join trained on outputs for a weak model's training images; val chooses the epoch.

    Both networks are frozen; SGD, 20 epochs, as the comparison with MODA has it.
    """
    join = Calibrated(train.inputs, seed).to(train.labels.device)
    inputs, held_out = train.inputs, [(val.inputs, val.labels)]

    def epochs() -> Iterator[list[Batch]]:
        for epoch in range(EPOCHS):
            order = torch.randperm(len(inputs), generator=generator(seed, "calibrate", epoch)).to(inputs.device)
            yield [(inputs[index], train.labels[index]) for index in order.split(BATCH_SIZE)]

    optimizer, schedule = sgd(
        join.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=0, steps=EPOCHS * -(-len(inputs) // BATCH_SIZE)
    )
    fit(
        join,
        epochs(),
        lambda model: accuracy(predict(model, held_out), val.labels),
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        label="calibrate",
    )
    return join


def class_metrics(predictions: Tensor, labels: Tensor, target: int) -> dict[str, float]:
    """Return precision, recall and F1 of a class, and the accuracy of all others, in [0, 1]; 0 without any image.

    In `others_accuracy`, only images of other classes count, and a prediction of the target is an error.
    """
    predicted, actual = predictions == target, labels == target
    correct = (predicted & actual).sum().item()
    precision, recall = _share(correct, predicted.sum().item()), _share(correct, actual.sum().item())
    others = (predictions == labels) & ~actual
    return {
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "others_accuracy": _share(others.sum().item(), (~actual).sum().item()),
    }


def mean_of_rows(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over rows."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
