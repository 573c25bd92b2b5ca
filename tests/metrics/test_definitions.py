"""Every measure has a definition that tables can print."""

from __future__ import annotations

import pytest

from deeppatch import metrics
from deeppatch.errors import UserError
from deeppatch.metrics import paired


@pytest.mark.parametrize("measure", metrics.DEFINITIONS)
def test_a_definition_is_one_sentence_with_a_unit(measure):
    title, sentence, unit, larger = metrics.definition(measure)
    assert sentence[0].isupper()
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")
    assert title
    assert unit
    assert larger in (True, False, None)
    (line,) = metrics.explained([measure])
    assert line.startswith(f"{title}: ")
    assert ("is better" in line) == (larger is not None)


def test_measures_that_are_bootstrapped_are_defined():
    assert set(paired.MEASURES) <= metrics.DEFINITIONS.keys()
    titles = [each.title for each in metrics.DEFINITIONS.values()]
    assert len(set(titles)) == len(titles)
    with pytest.raises(UserError, match="accuracy, change"):
        metrics.definition("agreement")
