"""The chain of all stages on the digits leaves what it left before the package was reorganised, to the digit.

`chain.json` was written by `chain.py` at revision 67c1575, but for the bytes of the patch of correction units: their
training has since become another form of the same sums, and its measured numbers are those of then. Bytes of trained
weights depend on the processor, so on processors that it does not name numbers are compared loosely.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
GOLDEN = json.loads((HERE / "chain.json").read_bytes())
# what was measured in seconds
TIMES = {"seconds", "wall_seconds"}
# what is called otherwise today: as it was, and as it is
RENAMED: dict[str, str] = {
    f"{prefix}{before}": f"{prefix}{now}"
    for before, now in {
        "propagated_labels_right_percent": "propagated_labels_correct_percent",
        "own_predictions_right_on_members_percent": "own_predictions_correct_on_members_percent",
        "guesses_right_on_unlabelled_percent": "pseudo_labels_correct_on_unlabelled_percent",
    }.items()
    for prefix in ("", "diagnostic_")
} | {"unlike": "dissimilarity", "steps": "max_batches"}


def differences(before: Any, now: Any, place: str, *, exact: bool) -> Iterator[str]:
    """Yield where `now` lacks or changes anything of `before`; what was added is no difference."""
    if isinstance(before, dict):
        for key in before.keys() - TIMES:
            today = RENAMED.get(key, key)
            if not isinstance(now, dict) or today not in now:
                yield f"{place}: no {today}"
            else:
                yield from differences(before[key], now[today], f"{place}/{today}", exact=exact)
    elif isinstance(before, list) and (exact or not is_order(place)):
        if not isinstance(now, list) or len(now) != len(before):
            yield f"{place}: {now!r} instead of {before!r}"
        else:
            for number, (old, new) in enumerate(zip(before, now, strict=True)):
                yield from differences(old, new, f"{place}/{number}", exact=exact)
    elif exact and before != now:
        yield f"{place}: {now!r} instead of {before!r}"
    elif not exact and isinstance(before, float) and (not isinstance(now, float) or abs(before - now) > 20):
        yield f"{place}: {now!r} is far from {before!r}"


def is_order(place: str) -> bool:
    """Tell whether a list's order is decided by small differences of trained numbers."""
    return place.endswith("/order")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, Any]:
    """What the chain leaves today."""
    folder = tmp_path_factory.mktemp("golden")
    done = subprocess.run(
        [sys.executable, str(HERE / "chain.py"), str(folder / "output"), str(folder / "found.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "found.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("step", GOLDEN["steps"])
def test_a_step_leaves_what_it_always_left(ran, step):
    exact = ran["processor"] in GOLDEN["processors"]
    assert list(differences(GOLDEN["steps"][step], ran["steps"][step], step, exact=exact)) == []


def test_a_changed_number_or_a_lost_file_is_a_difference():
    before = [{"weights.safetensors": "ab", "table.csv": {"right": ["1", "2"]}, "metrics.json": {"seconds": 3}}]
    same = [{**before[0], "metrics.json": {"seconds": 4, "more": 1}}]
    assert list(differences(before, same, "step", exact=True)) == []
    for changed in ({"weights.safetensors": "ac"}, {"table.csv": {"right": ["1", "3"]}}, {"table.csv": {"wrong": []}}):
        assert len(list(differences(before, [{**before[0], **changed}], "step", exact=True))) == 1
    assert list(differences(before, [{}], "step", exact=True))
    assert list(differences({"percent": 50.0}, {"percent": 80.0}, "step", exact=False))
