"""Names that the command line offers are those of what they stand for."""

from __future__ import annotations

from deeppatch.data import biased_split
from deeppatch.hybrid import names
from deeppatch.hybrid.selection_methods import METHODS
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.names import ARCHITECTURE_NAMES


def test_names_are_those_of_the_registries():
    assert tuple(METHODS) == names.METHODS
    assert biased_split.BIASES == names.BIASES
    assert set(names.BY_FEATURES) < set(METHODS)
    assert tuple(ARCHITECTURES) == ARCHITECTURE_NAMES
