"""Requirements: what they mean, what is no requirement, and which numbers meet them."""

from __future__ import annotations

import math

import pytest

from deeppatch.data.corruption_names import parse
from deeppatch.errors import UserError
from deeppatch.ledger.requirements import Requirement, check_names, judge, known_names, requirement

NUMBERS = {
    ("clean", 0): (-0.15, -0.3, 0.0), ("blurred", 0): (5.5, 4.8, 6.2), ("fog", 0): (1.0, 0.5, 1.5),
    ("fog", 3): (0.0, -0.4, 0.4), ("flips", 0): (0.9, 0.7, 1.2), ("bytes", 0): (200_000.0, 200_000.0, 200_000.0),
    ("mixed", 0): (math.nan, math.nan, math.nan),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "met", "surely"),
    [
        ("clean>=-0.2", True, False), ("clean >= -0.3", True, True), ("clean>=0", False, False),
        ("clean>-0.15", False, False), ("clean>=-0.15", True, False), ("blurred>=+5", True, False),
        ("blurred>=4.8", True, True), ("blurred>6", False, False), ("fog>=0.5", True, True),
        ("fog:3>=0", True, False), ("fog:3>=-0.5", True, True), ("flips<=1", True, False), ("flips<=1.2", True, True),
        ("flips<0.9", False, False), ("bytes<=2e5", True, True), ("bytes<200000", False, False),
        ("blurred<=6", True, False), ("mixed>=-99", False, False), ("mixed<=99", False, False),
    ],
)  # fmt: skip
def test_a_requirement_is_met(text, met, surely):
    required = [requirement(text)]
    for confident, want in ((False, met), (True, surely)):
        (found,) = judge(required, NUMBERS, confident=confident)
        assert found.met == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("clean>=-0.2", Requirement("clean", 0, ">=", -0.2)),
        ("  held out > +1e1 ", Requirement("held out", 0, ">", 10.0)),
        ("jpeg_compression:5<=3", Requirement("jpeg_compression", 5, "<=", 3.0)),
        ("package.module:rain>=1", Requirement("package.module:rain", 0, ">=", 1.0)),
    ],
)
def test_what_is_written_is_what_is_meant(text, want):
    assert requirement(text) == want
    assert requirement(str(want)) == want


@pytest.mark.parametrize(
    "text", ["", "clean", "clean>=", ">=3", "clean=>3", "clean==3", "clean>=x", "clean>=nan", "clean>=inf", "a>=1>=2",
             "clean>=1 points"],
)  # fmt: skip
def test_what_is_no_requirement(text):
    with pytest.raises(UserError, match="write NAME>=NUMBER or NAME<=NUMBER, such as clean>=-0.2"):
        requirement(text)


@pytest.mark.parametrize(
    ("degradations", "text", "said"),
    [
        ("gaussion", "blurrd>=5", r"blurrd is not measured \(did you mean blurred\?\); choose from clean, mixed, "),
        ("fog", "blurred>=5", "blurred is not measured; choose from .*name more degradations with -n"),
        ("noise", "all>=5", "all is not measured"),
        ("gaussion,all", "fog:6>=0", "fog has no severity 6; there are: 1, 2, 3, 4, 5"),
        ("gaussion", "gaussion:7>=0", "gaussion has no severity 7; there are: 1, 2, 3, 4, 5, 6"),
        ("noise", "noise:1>=0", "noise has no severity 1; there are: none"),
        ("gaussion", "held out>=0", "held out is not measured"),
    ],
)
def test_what_will_not_be_measured(degradations, text, said):
    with pytest.raises(UserError, match=said):
        check_names([requirement(text)], known_names(parse(degradations)))


@pytest.mark.parametrize(
    ("degradations", "names"),
    [
        ("gaussion", ["clean", "mixed", "degraded", "flips", "bytes", "blurred", "gaussion", "gaussion:6"]),
        ("gaussion,all", ["all", "blurred", "weather", "fog:5", "noise"]),
        ("released:somewhere", ["all", "fog:3", "digital"]),
        ("spatial", ["spatial:2"]),
    ],
)
def test_what_will_be(degradations, names):
    check_names([requirement(f"{name}>=0") for name in names], known_names(parse(degradations)))
    check_names([requirement("held out>=0")], known_names(parse("noise"), held_out=True))
    check_names([requirement("rain>=0")], known_names(parse("folder:rain")), own=True)


def test_what_was_not_measured_of_this_network_is_said():
    with pytest.raises(UserError, match="all>=\\+1: all was not measured of this network; there are clean, blurred, "):
        judge([requirement("all>=1")], NUMBERS)


def test_a_judgement_says_bound_estimate_and_interval():
    texts = [str(each) for each in judge([requirement(text) for text in ("clean>=-.2", "flips<1", "bytes<9")], NUMBERS)]
    assert texts == [
        "clean>=-0.2: -0.15 points (-0.30 to +0.00)", "flips<1: 0.90 % (0.70 to 1.20)", "bytes<9: 200000",
    ]  # fmt: skip
