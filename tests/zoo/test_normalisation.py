"""Which constants of normalisation come first."""

from __future__ import annotations

import pytest

from deeppatch.zoo.entries import PROTOCOL_STATS, Entry
from deeppatch.zoo.normalisation import (
    FROM_FILE,
    GIVEN,
    NONE,
    OF_PROTOCOL,
    OF_ZOO,
    Normalisation,
    choose_normalisation,
)

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SAVED = ([0.5] * 3, [0.25] * 3)
ENTRY = Entry("https://nowhere.invalid/net-00000000.pt", 90.0, (0.7,) * 3, (0.8,) * 3)
EVERYTHING = {"mean": MEAN, "std": STD, "saved": SAVED, "protocol": "svhn", "entry": ENTRY}


def others() -> Normalisation:
    return Normalisation((0.9,) * 3, (1.0,) * 3, "others")


def test_the_order_is_given_file_protocol_zoo_and_then_others():
    wanted = [
        Normalisation(MEAN, STD, GIVEN),
        Normalisation(*SAVED, FROM_FILE),
        Normalisation(*PROTOCOL_STATS["svhn"], OF_PROTOCOL),
        Normalisation(ENTRY.mean, ENTRY.std, OF_ZOO),
        others(),
    ]
    sources, found = dict(EVERYTHING), []
    for absent in (("mean", "std"), ("saved",), ("protocol",), ("entry",), ()):
        found.append(choose_normalisation(**sources, otherwise=others))
        sources = {name: value for name, value in sources.items() if name not in absent}
    assert found == wanted


def test_others_are_computed_only_where_they_are_needed():
    choose_normalisation(entry=ENTRY, otherwise=lambda: pytest.fail("there are constants"))


@pytest.mark.parametrize("protocol", [None, "digits"])
def test_a_data_set_without_a_protocol_has_the_constants_of_the_zoo_and_without_any_none(protocol):
    assert choose_normalisation(protocol=protocol, entry=ENTRY).origin == OF_ZOO
    assert choose_normalisation(protocol=protocol) == Normalisation((0.0,) * 3, (1.0,) * 3, NONE)


def test_one_given_constant_replaces_only_that_one():
    assert choose_normalisation(mean=MEAN, saved=SAVED) == Normalisation(MEAN, SAVED[1], FROM_FILE)
    assert choose_normalisation(std=STD, entry=ENTRY) == Normalisation(ENTRY.mean, STD, OF_ZOO)
