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


def info(message: str) -> None:
    """Print one [info] line."""
    print(f"[info] {message}", flush=True)


@contextmanager
def counting(total: int, label: str, done: float = 0) -> Iterator[Callable[..., object]]:
    """Yield a function to call after each of `total` steps (or with a number: after so many), `done` of them earlier.

    Shows a progress bar with the remaining time on a terminal, and a log line every 15 seconds elsewhere.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=label, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = last = time.monotonic()
    count = 0.0

    def tick(steps: float = 1) -> None:
        nonlocal count, last
        count += steps
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            info(f"{label}: {done + count:.0f}/{total}, {(now - start) / count * (total - done - count):.0f} s left")

    yield tick


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Pass `items` through and show how many of `total` have been dealt with."""
    with counting(total, label) as tick:
        for item in items:
            yield item
            tick()
