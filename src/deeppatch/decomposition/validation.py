"""Compare decomposed last layers with the whole layer: accuracy, multiply-adds and time."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor, nn

from deeppatch.decomposition.features import Features
from deeppatch.decomposition.head import DecomposedHead, microseconds
from deeppatch.decomposition.tune import head_accuracy

WHOLE = "whole layer"


def heads(whole: nn.Linear, sets: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Return the whole layer, and a decomposed one for each named set of features (C, k)."""
    return {WHOLE: whole} | {name: DecomposedHead.from_linear(whole, indices) for name, indices in sets.items()}


def validate(compared: Mapping[str, nn.Module], features: Features) -> pd.DataFrame:
    """Return one row for each head: features per class, accuracy in percent, multiply-adds for one image."""
    measured = head_accuracy(features)
    rows = []
    for name, head in compared.items():
        weight = head.weight
        assert isinstance(weight, Tensor)
        rows.append(
            {
                "head": name,
                "features_a_class": weight.shape[1],
                "accuracy_percent": 100 * measured(head),
                "multiply_adds": weight.numel(),
            }
        )
    return pd.DataFrame(rows)


def times(compared: Mapping[str, nn.Module], batch: Tensor) -> dict[str, float]:
    """Return the median time of a forward pass over features (N, D) for each head, in microseconds."""
    return {name: microseconds(head, batch) for name, head in compared.items()}
