"""kill -9 at random moments of every stage, then -r: the same bytes as those of a run that nobody disturbed."""

from __future__ import annotations

import moments
import pytest
from workshop import LINES

pytestmark = pytest.mark.campaign

FEW = {"export": 2}  # a slow one
KILLS = [(name, number) for number in range(7) for name in LINES if number < FEW.get(name, 7)][:100]


@pytest.mark.parametrize(("name", "number"), KILLS)
def test_a_killed_stage_goes_on_to_the_same_bytes(workshop, draw, count, name, number):
    """At every third moment by the clock, else at a file operation; at every fourth killed again while it resumes."""
    workshop.restore(name)
    whole = workshop.done[name]
    times = 2 if number % 4 == 3 else 1
    said, seconds = [], 0.0
    for attempt in range(times):
        more = "-r" if attempt else ""
        if number % 3 == 0:
            after = draw.uniform(0.02, 0.98) * whole.seconds
            ended = workshop.start(name, more=more).wait(after)
            said.append(f"after {after:.2f} s")
        else:
            operation = draw.randint(1, whole.operations)
            ended = workshop.start(name, moments.killed_at(operation), more=more).wait()
            said.append(f"at file operation {operation} of {whole.operations}")
        seconds += ended.seconds
    ended = workshop.resume(name)
    wrong = ended.fault if ended.status else workshop.difference(name)
    moment = ", then ".join(said)
    count("kill", name, moment, "failed" if wrong else "identical", wrong or "", seconds + ended.seconds)
