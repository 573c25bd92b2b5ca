"""SIGTERM ends a command as Ctrl-C does, the second signal at once, and what is ignored stays ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deeppatch.cli import main
from deeppatch.cli.signals import Terminated, ended_in_order

SRC = Path(__file__).resolve().parents[2] / "src"
FIRST, SECOND = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def usual_actions():
    """The actions that a process in the foreground starts with."""
    before = {number: signal.getsignal(number) for number in (FIRST, SECOND)}
    signal.signal(SECOND, signal.default_int_handler)
    signal.signal(FIRST, signal.SIG_DFL)
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_is_one_line_and_a_status_of_its_own(monkeypatch, capsys, number, status, said):
    monkeypatch.setattr(main, "run", lambda *_given: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert main.guarded("eval", [], "python src/{script}.py") == status
    assert capsys.readouterr().err.strip() == (
        f"[info] {said}; finished work is kept: continue with the same command and -r"
    )
    assert signal.getsignal(number) == before, "what was set is set back"


def test_sigterm_is_heard_wherever_ctrl_c_is():
    with pytest.raises(KeyboardInterrupt) as caught, ended_in_order():
        os.kill(os.getpid(), FIRST)
    assert caught.type is Terminated


@pytest.mark.parametrize("number", [FIRST, SECOND])
def test_after_the_first_signal_the_second_has_the_system_s_own_action(number):
    try:
        with ended_in_order():
            try:
                os.kill(os.getpid(), number)
            finally:
                actions = {signal.getsignal(each) for each in (FIRST, SECOND)}
    except KeyboardInterrupt:
        pass
    assert actions == {signal.SIG_DFL}


def test_a_second_ctrl_c_ends_a_process_that_takes_its_time_with_the_first():
    code = (
        "import os, signal, sys, time; sys.path.append(sys.argv[1]); from deeppatch.cli.signals import ended_in_order\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with ended_in_order():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SRC)], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_what_is_ignored_or_handled_stays_so():
    signal.signal(SECOND, signal.SIG_IGN)
    heard = []
    signal.signal(FIRST, lambda *_given: heard.append("mine"))
    with ended_in_order():
        os.kill(os.getpid(), SECOND)
        os.kill(os.getpid(), FIRST)
    assert heard == ["mine"]
    assert signal.getsignal(SECOND) == signal.SIG_IGN


def test_in_another_thread_nothing_is_changed():
    found = []

    def enter():
        with ended_in_order():
            found.append(signal.getsignal(FIRST))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_under_torchrun_the_ranks_have_a_way_of_their_own(monkeypatch):
    """It sends every rank the Ctrl-C that the terminal has sent already: a second one must not end them at once."""
    monkeypatch.setattr(main.launch, "requested_ranks", lambda: 2)
    seen = []
    monkeypatch.setattr(main, "run", lambda *_given: seen.append(signal.getsignal(FIRST)))
    assert main.guarded("correct", [], "python src/{script}.py") == 0
    assert seen == [signal.SIG_DFL]
