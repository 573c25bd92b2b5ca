"""What a run says while it works: [info] lines, and progress with the remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


class _Last:
    line = time.monotonic()  # when it was written


def info(message: str) -> None:
    """Print one [info] line."""
    _Last.line = time.monotonic()
    print(f"[info] {message}", flush=True)


@contextmanager
def counting(total: int, label: str, done: float = 0) -> Iterator[Callable[..., object]]:
    """Yield a function to call after each of `total` steps (or with a number: after so many), `done` of them earlier.

    Shows a progress bar with the remaining time on a terminal, and elsewhere a log line where none was written for 15
    seconds, by this loop or by any other.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=label, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = time.monotonic()
    count = 0.0

    def tick(steps: float = 1) -> None:
        nonlocal count
        count += steps
        now = time.monotonic()
        if now - _Last.line >= SECONDS_BETWEEN_LINES:
            info(f"{label}: {done + count:.0f}/{total}, {(now - start) / count * (total - done - count):.0f} s left")

    yield tick


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Pass `items` through and show how many of `total` have been dealt with."""
    with counting(total, label) as tick:
        for item in items:
            yield item
            tick()
