from __future__ import annotations

import io
import logging

import pytest

from deeppatch import progress


class Clock:
    """Stands in for time.monotonic; it advances when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test advances, in a block where progress is shown, without a terminal."""
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())  # no terminal
    with progress.console_output():
        yield clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_info_is_one_marked_line_where_it_is_shown(capsys):
    with progress.console_output():
        progress.info("three filters, 100 %d")
        with progress.console_output():  # a command that runs commands
            progress.info("once")
        progress.info("still")
    progress.info("not shown")
    assert capsys.readouterr() == ("[info] three filters, 100 %d\n[info] once\n[info] still\n", "")


def test_the_logger_is_left_as_it_was():
    before = (list(progress.LOGGER.handlers), progress.LOGGER.level, progress.LOGGER.propagate)
    with pytest.raises(ValueError, match="broken"), progress.console_output():
        raise ValueError("broken")
    assert (list(progress.LOGGER.handlers), progress.LOGGER.level, progress.LOGGER.propagate) == before


def test_a_library_user_hears_what_logging_is_configured_for(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="deeppatch"):
        progress.info("three filters")
    assert caplog.messages == ["three filters"]
    assert capsys.readouterr() == ("", "")


def test_a_library_user_sees_no_progress(monkeypatch, capsys, caplog):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="deeppatch"), progress.counting(10, "ranking") as tick:
        for _ in range(4):
            clock.now += 20
            tick()
    assert list(progress.track("abc", 3, "letters")) == ["a", "b", "c"]
    assert (terminal.getvalue(), capsys.readouterr().out, caplog.messages) == ("", "", [])


def test_track_passes_every_item_through_in_order(clock):
    assert list(progress.track(iter("abc"), 3, "letters")) == ["a", "b", "c"]


def test_short_work_prints_nothing(clock, capsys):
    list(progress.track(range(100), 100, "short"))
    assert capsys.readouterr().out == ""


def test_long_work_prints_a_line_every_fifteen_seconds_with_the_time_left(clock, capsys):
    with progress.counting(10, "ranking") as tick:
        for _ in range(4):
            clock.now += 8
            tick()
    # ticks at 8, 16, 24 and 32 s: lines at the first tick past 15 s, and 15 s after that line
    assert capsys.readouterr().out.splitlines() == [
        "[info] ranking: 2/10, 64 s left",
        "[info] ranking: 4/10, 48 s left",
    ]


def test_many_short_loops_are_not_silent_for_longer_than_one_long_one(clock, capsys):
    for _ in range(5):
        for _ in progress.track(range(2), 2, "short"):
            clock.now += 4
    progress.info("between")
    for _ in progress.track(range(3), 3, "later"):
        clock.now += 7
    # short loops tick at 4, 8, 12, 16, ... 40 s: lines at 16 and 32 s; then one 15 s after the line between
    assert capsys.readouterr().out.splitlines() == [
        "[info] short: 2/2, 0 s left",
        "[info] short: 2/2, 0 s left",
        "[info] between",
        "[info] later: 3/3, 0 s left",
    ]


def test_work_of_an_earlier_run_counts_as_done_but_not_as_fast(clock, capsys):
    with progress.counting(10, "ranking", done=6) as tick:
        clock.now += 20
        tick()
    assert capsys.readouterr().out == "[info] ranking: 7/10, 60 s left\n"


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    with progress.console_output(), progress.counting(10, "ranking", done=6) as tick:
        for _ in range(4):
            tick()
    assert "ranking" in terminal.getvalue()
    assert "6/10" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_an_exception_passes_through(clock):
    def broken():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress.track(broken(), 2, "label"))
