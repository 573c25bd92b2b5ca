"""Two processes that begin the same run at once: one writes, the other says so in one line, and the bytes are right."""

from __future__ import annotations

import pytest
from workshop import LINES

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("name", [name for name in LINES if name != "export"])
def test_of_two_writers_one_is_refused(workshop, count, name):
    workshop.restore(name)
    both = [workshop.start(name) for _ in range(2)]
    ended = [each.wait() for each in both]
    refused = [each for each in ended if each.status]
    wrong = "; ".join(filter(None, (each.fault for each in refused)))
    if len(refused) > 1:
        wrong = wrong or "both are refused"
    if refused and "is being written by process" not in refused[0].err:
        wrong = wrong or refused[0].err
    wrong = wrong or workshop.difference(name)
    moment = "one is refused" if refused else "one after the other"
    count("writers", name, moment, "failed" if wrong else "identical", wrong, max(each.seconds for each in ended))
