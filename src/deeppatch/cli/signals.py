"""How a command ends on Ctrl-C and SIGTERM: in an orderly way at the first signal, at once at the second."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers of clusters and containers send; whatever handles Ctrl-C handles it too."""


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT and Terminated at SIGTERM within the block, once.

    After the first of them both have the system's own action, so that a second one ends the process at once. A signal
    that is ignored (as a shell does for a job in the background), or that has a handler of its own, stays so. Handlers
    belong to the main thread; in another one nothing is changed.
    """
    mine = {
        signal.SIGINT: (KeyboardInterrupt, signal.default_int_handler),
        signal.SIGTERM: (Terminated, signal.SIG_DFL),
    }
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = {number: error for number, (error, usual) in mine.items() if signal.getsignal(number) == usual}

    def end(number: int, _frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)
        raise taken[signal.Signals(number)]

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, mine[number][1])
