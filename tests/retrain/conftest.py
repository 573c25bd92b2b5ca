"""Data of the tiny images, and the bytes of a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from deeppatch.artifacts import tensors_to_bytes
from deeppatch.data.dataset import Data


@pytest.fixture
def data(images) -> Data:
    """The same sixty images as train, val and test."""
    return Data(images, images, images, tuple("abcde"))


@pytest.fixture
def content() -> Callable[[nn.Module], bytes]:
    """Return the bytes of a model's state."""
    return lambda model: tensors_to_bytes(model.state_dict())
