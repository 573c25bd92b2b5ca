"""kill -9 at random moments of every stage, then -r: the same bytes as those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import time

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "name", [name for name in ("correct-finetune", "assess", "modularize-ga", "compare") if name in LINES]
)
def test_a_stage_that_gets_a_signal_says_so_and_goes_on_to_the_same_bytes(workshop, draw, count, name, number):
    workshop.restore(name)
    running = workshop.start(name)
    after = draw.uniform(0.3, 0.7) * workshop.done[name].seconds
    time.sleep(after)
    os.kill(running.process, number)
    ended = running.wait()
    status, how = (130, "interrupted") if number == signal.SIGINT else (143, "ended by SIGTERM")
    wrong = ""
    if ended.status:  # else it was done before
        said = f"[info] {how}; finished work is kept: continue with the same command and -r"
        wrong = "" if (ended.status, ended.err.strip()) == (status, said) else f"status {ended.status}: {ended.err}"
    ended = workshop.resume(name)
    wrong = wrong or (ended.fault or "" if ended.status else workshop.difference(name))
    moment = f"{number.name} after {after:.2f} s"
    count("signal", name, moment, "failed" if wrong else "identical", wrong, ended.seconds)
