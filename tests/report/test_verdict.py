"""The verdict on a repair: when it pays, when it loses, and that it never says more than the interval shows."""

from __future__ import annotations

import pytest

from deeppatch.metrics import Interval
from deeppatch.report.verdict import verdict

CASES = [
    # clean, degraded, loses, what the conclusion says
    ((0.1, -0.2, 0.4), (5, 4, 6), False, "gains where it should, and loses at most 0.20 points on clean images (95 %)"),
    ((0.6, 0.2, 1.0), (5, 4, 6), False, "gains where it should, and on clean images, too"),
    ((-1.0, -1.5, -0.5), (4, 3, 5), False, "pays only where more than 20.0 % of the images are degraded"),
    ((-4.0, -5.0, -3.0), (1, 0.5, 1.5), True, "LOSES more on clean images than it gains on blurred ones"),
    ((0.0, -0.5, 0.5), (0.5, -1, 2), False, "No gain on blurred images is shown: the 95 % interval contains zero"),
    ((-1.0, -1.5, -0.5), (0.5, -1, 2), True, "is shown, and it loses on clean ones"),
    ((0.5, 0.1, 0.9), (-2, -3, -1), True, "LOSES: it is worse on the blurred images that it is for"),
    ((-0.1, -0.5, 0.5), (-0.1, -3, 1), True, "LOSES"),
    ((1.0, 0.5, 1.5), None, False, "The repair gains"),
    ((0.0, -0.5, 0.5), None, False, "No change is shown"),
    ((-1.0, -1.5, -0.5), None, True, "LOSES"),
]


@pytest.mark.parametrize(("clean", "degraded", "loses", "said"), CASES)
def test_a_verdict(clean, degraded, loses, said):
    both = Interval(*clean), None if degraded is None else Interval(*degraded)
    found = verdict("switched", *both, on="blurred")
    assert found.loses == loses
    assert said in found.conclusion
    assert ("LOSES" in found.conclusion) <= loses
    assert str(found) == f"{found.found} {found.conclusion}"


def test_the_first_sentence_has_the_numbers_with_their_intervals():
    assert verdict("new", Interval(-0.16, -0.26, -0.07), Interval(12.3, 11.8, 12.9), on="blurred").found == (
        "new gains 12.30 points (11.80 to 12.90) over pretrained on blurred images and loses 0.16 (0.07 to 0.26) on "
        "clean ones."
    )
    assert "and changes nothing (-0.10 to 0.20) on clean ones." in verdict(
        "new", Interval(0.0, -0.1, 0.2), Interval(1, 0.5, 1.5)
    ).found  # fmt: skip
    assert verdict("new", Interval(-0.1, -0.3, 0.1), base="old").found == (
        "new loses 0.10 points (-0.10 to 0.30) against old on clean images."
    )
