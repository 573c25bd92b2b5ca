"""Messages through `logging`, and the progress of loops with the remaining time.

The library logs to the logger `deeppatch` and prints nothing. The command line enables `console_output`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0
LOGGER = logging.getLogger("deeppatch")
MEASURED = logging.getLogger("deeppatch.measured")


class ConsoleHandler(logging.Handler):
    """Prints every message as one [info] line on stdout, and records the time of the last line.

    Loops show their progress only while it is a handler of the logger `deeppatch`.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.last_line = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record; errors of stdout are raised."""
        self.last_line = time.monotonic()
        print(f"[info] {record.getMessage()}", flush=True)


def info(message: str) -> None:
    """Log one message at level INFO."""
    LOGGER.info(message)


def measured(series: str, step: int, **values: float) -> None:
    """Report values at one step of a series to the handlers of the logger `deeppatch.measured`, which is silent.

    Records have an attribute `measured`: (series, step, values). `report.sinks.logging_to` reads it.
    """
    MEASURED.debug("%s, step %d: %s", series, step, values, extra={"measured": (series, step, values)})


def _console_handler() -> ConsoleHandler | None:
    return next((handler for handler in LOGGER.handlers if isinstance(handler, ConsoleHandler)), None)


@contextmanager
def console_output() -> Iterator[None]:
    """Print messages as [info] lines and show the progress of loops within the block, as the command line does.

    >>> with console_output():
    ...     info("three filters")
    [info] three filters
    """
    if _console_handler():  # a command that runs other commands
        yield
        return
    handler, level, propagate = ConsoleHandler(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # so that lines are not printed twice when a library configures the root logger
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


@contextmanager
def counting(total: int, label: str, done: float = 0) -> Iterator[Callable[..., object]]:
    """Show the progress of a loop, and yield the function that advances it.

    Within `console_output` a progress bar is shown on a terminal; otherwise a line is printed whenever no line has been
    printed for 15 seconds. Outside of it nothing is shown.

    Args:
        total: The number of steps.
        label: The name of the loop.
        done: The number of steps that an earlier run has finished.

    Yields:
        A function to call after each step, or with a number n after n steps.
    """
    lines = _console_handler()
    if lines is None:
        yield lambda steps=1: None
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=label, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = time.monotonic()
    count = 0.0

    def tick(steps: float = 1) -> None:
        nonlocal count
        count += steps
        now = time.monotonic()
        if now - lines.last_line >= SECONDS_BETWEEN_LINES:
            info(f"{label}: {done + count:.0f}/{total}, {(now - start) / count * (total - done - count):.0f} s left")

    yield tick


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield `items`, and show the progress of the loop over them."""
    with counting(total, label) as tick:
        for item in items:
            yield item
            tick()
