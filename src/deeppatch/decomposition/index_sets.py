"""Sets of k features for each class: read and write them as JSON, compare them, derive them from gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeppatch.errors import UserError
from deeppatch.storage import parse_json


def to_json(indices: Tensor) -> bytes:
    """Serialise indices (C, k) in the published form: class -> list of features."""
    return (json.dumps({str(label): row for label, row in enumerate(indices.tolist())}) + "\n").encode()


def parse(content: bytes, origin: Path, classes: int, width: int) -> Tensor:
    """Parse the published form as int64 (classes, k) of features from 0 to `width` - 1; UserError if it is invalid."""
    try:
        sets: Any = parse_json(content)
    except ValueError as error:
        raise UserError(f"{origin} is not JSON; give a file of the form {{class: [features]}}") from error
    if not isinstance(sets, dict) or not all(isinstance(row, list) for row in sets.values()):
        raise UserError(f"{origin} is not of the form {{class: [features]}}; make one with influence")
    if sets.keys() != {str(label) for label in range(classes)}:
        raise UserError(
            f"{origin} has {len(sets)} classes ({_first_few(sets)}), the data set has {classes} (0 to {classes - 1}); "
            "choose the data set that it was made for"
        )
    for label, row in sets.items():
        wrong = [value for value in row if type(value) is not int or not 0 <= value < width]
        if wrong:
            raise UserError(
                f"{origin}: class {label} names {wrong[0]!r}, the network's features are 0 to {width - 1}; "
                "choose the model that it was made for"
            )
        twice = sorted({value for value in row if row.count(value) > 1})
        if twice:
            raise UserError(f"{origin}: class {label} names feature {twice[0]} more than once; remove the duplicates")
    sizes = {len(row) for row in sets.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise UserError(
            f"{origin}: classes have {_first_few(sorted(sizes))} features; give every class the same number"
        )
    return torch.tensor([sets[str(label)] for label in range(classes)])


def _first_few(values: Any) -> str:
    shown = list(map(str, values))
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def membership(indices: Tensor, width: int) -> Tensor:
    """Return a mask of the features of each class, bool (C, width)."""
    members = torch.zeros(len(indices), width, dtype=torch.bool, device=indices.device)
    return members.scatter_(1, indices, True)


def overlap(one: Tensor, other: Tensor, width: int) -> Tensor:
    """Return the number of common features of each class of `one` (C, k) and each of `other` (C, l), int64 (C, C)."""
    return (membership(one, width).double() @ membership(other, width).double().T).long()


def common_features(one: Tensor, other: Tensor, width: int) -> Tensor:
    """Return for each class how many features are both in `one` (C, k) and in `other` (C, l), int64 (C,).

    Args:
        one: The indices of the features of each class.
        other: Other indices for the same classes.
        width: The number of features that there are.

    >>> common_features(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [3, 4]]), 5)
    tensor([2, 1])
    """
    return (membership(one, width) & membership(other, width)).sum(1)


def from_gates(gates: Tensor, k: int, *, highest: bool) -> Tensor:
    """Return the k features of highest or lowest gate for each class (Liang et al., ECCV 2020), int64 (C, k).

    `gates` (C, D) of class-specific-gate training are near 1 where a class uses a feature. Ties are broken by index.
    The comparison that was published with the decomposition uses the lowest gates.
    """
    return gates.sort(dim=1, descending=highest, stable=True).indices[:, :k]
