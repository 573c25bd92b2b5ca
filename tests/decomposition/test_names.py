"""Names that the command line offers are those of what they stand for."""

from __future__ import annotations

from deeppatch.cli.decompose.command import RUN
from deeppatch.decomposition.names import ACTIONS


def test_names_are_those_of_the_registry():
    assert tuple(RUN) == ACTIONS
