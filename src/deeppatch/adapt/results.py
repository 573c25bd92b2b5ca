"""What methods of test-time adaptation answered on streams, and the tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from deeppatch import metrics

UNDEFINED = "not defined for a batch of one image"


@dataclass
class Answers:
    """What one method or network answered on one stream.

    Args:
        method: The name of the row.
        stream: The name of the stream.
        correct: Which images were classified correctly, bool (levels, images); None where the method is not defined.
        clean: The accuracies in [0, 1] on clean images afterwards; one for each new start.
        forward: The number of passes of one image without a backward pass.
        train: The number of those with one.
        resets: How often the method itself returned to the original weights.
        neighbours: Whether an answer depends on the other images of its batch.
        past: Whether an answer depends on earlier batches.
    """

    method: str
    stream: str
    correct: np.ndarray | None
    clean: list[float] = field(default_factory=list)
    forward: int = 0
    train: int = 0
    resets: int = 0
    neighbours: bool = False
    past: bool = False


@dataclass(frozen=True)
class StreamResults:
    """What methods and networks answered on streams.

    Args:
        answers: By name of the row and name of the stream.
        reference: The row that the others are compared with.
        levels: The names of the levels, in the order of the rows of `Answers.correct`.
        image: The indices in the test part of the images (n,), the columns of `Answers.correct`.
        single_image: Those of the stream `single`.
    """

    answers: dict[tuple[str, str], Answers]
    reference: str
    levels: tuple[str, ...]
    image: np.ndarray
    single_image: np.ndarray

    def by_type(self) -> pd.DataFrame:
        """Return a tidy table with a row for each method, stream and level; shares are in percent.

        Columns: `method`, `stream`, `type`, `n` images, `accuracy`, and `difference` to the reference, with its 95 %
        interval from `low` to `high`; empty for the reference itself. Where a method is not defined there is no row.
        """
        rows: list[dict[str, Any]] = []
        for answers in self.answers.values():
            if answers.correct is None:
                continue
            before = self._before(answers)
            for number, level in enumerate(self.levels):
                row = {"method": answers.method, "stream": answers.stream, "type": level}
                found = _accuracy(answers.correct[number], None if before is None else before[number])
                rows.append(row | {"n": answers.correct.shape[1]} | found)
        return pd.DataFrame(rows)

    def by_stream(self) -> pd.DataFrame:
        """Return a tidy table with a row for each method and stream; shares are in percent.

        Columns: `method`, `stream`, `n` answers, `accuracy` over all levels, `difference`, `low` and `high` as in
        `by_type`, where an image with all its copies counts once; `clean`, the accuracy on clean images afterwards;
        `forward` and `train`, passes of one image for each answer; `resets`; `neighbours`, `past`; and a `note`.
        """
        return pd.DataFrame([self._summary(answers) for answers in self.answers.values()])

    def _before(self, answers: Answers) -> np.ndarray | None:
        """Return what the reference has answered; None for the reference itself and where it is not defined."""
        return None if answers.method == self.reference else self.answers[self.reference, answers.stream].correct

    def _summary(self, answers: Answers) -> dict[str, Any]:
        row: dict[str, Any] = {"method": answers.method, "stream": answers.stream}
        if answers.correct is None:
            return row | {"n": 0, "neighbours": answers.neighbours, "past": answers.past, "note": UNDEFINED}
        count = answers.correct.size
        row |= {"n": count} | _accuracy(answers.correct, self._before(answers))
        return row | {
            "clean": 100 * float(np.mean(answers.clean)),
            "forward": answers.forward / count,
            "train": answers.train / count,
            "resets": answers.resets,
            "neighbours": answers.neighbours,
            "past": answers.past,
            "note": "",
        }


def joined(results: Sequence[StreamResults], seeds: Sequence[int]) -> pd.DataFrame:
    """Return the tables by stream of several seeds as one, with a column `seed`."""
    return pd.concat([each.by_stream().assign(seed=seed) for each, seed in zip(results, seeds, strict=True)])


def _accuracy(correct: np.ndarray, before: np.ndarray | None) -> dict[str, float]:
    """Return accuracy, and the difference to the reference with its interval, in percent."""
    found = {"accuracy": 100 * float(correct.mean())}
    if before is None:
        return found | dict.fromkeys(("difference", "low", "high"), float("nan"))
    change = metrics.paired_difference(torch.from_numpy(correct), torch.from_numpy(before)).scaled(100)
    return found | {"difference": change.estimate, "low": change.low, "high": change.high}
