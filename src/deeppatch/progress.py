"""What a run says while it works: messages through `logging`, and progress with the remaining time.

The library logs to the logger `deeppatch` and prints nothing. The command line enables `shown`.
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


class InfoLines(logging.Handler):
    """Prints every message as one [info] line on stdout, and knows when it printed the last one.

    While it is a handler of the logger `deeppatch`, loops show their progress; it holds all the state that this takes.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.last_line = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record; what stdout raises is raised."""
        self.last_line = time.monotonic()
        print(f"[info] {record.getMessage()}", flush=True)


def info(message: str) -> None:
    """Log one message at level INFO."""
    LOGGER.info(message)


def _info_lines() -> InfoLines | None:
    return next((handler for handler in LOGGER.handlers if isinstance(handler, InfoLines)), None)


@contextmanager
def shown() -> Iterator[None]:
    """Print messages as [info] lines and show the progress of loops within a block, as the command line does.

    >>> with shown():
    ...     info("three filters")
    [info] three filters
    """
    if _info_lines():  # a command that runs commands
        yield
        return
    handler, level, propagate = InfoLines(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a library that configures the root logger must not have lines printed twice
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


@contextmanager
def counting(total: int, label: str, done: float = 0) -> Iterator[Callable[..., object]]:
    """Yield a function to call after each of `total` steps (or with a number n: after n), `done` of them earlier.

    Where progress is `shown`, a terminal gets a bar with the remaining time, and anything else a line where none was
    written for 15 seconds, by this loop or by any other. Elsewhere nothing is shown.
    """
    lines = _info_lines()
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
    """Pass `items` through and show how many of `total` have been dealt with."""
    with counting(total, label) as tick:
        for item in items:
            yield item
            tick()
