"""How a command ends on Ctrl-C and SIGTERM: in an orderly way at the first signal, at once at the second."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers of clusters and containers send; whatever handles Ctrl-C handles it too."""


ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT and Terminated at SIGTERM within the block, once.

    After the first of them both have the system's own action, so that a second one ends the process at once. A signal
    that is ignored (as a shell does for a job in the background), or that has a handler of its own, stays so. Handlers
    belong to the main thread; in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: action for number in ERRORS if (action := signal.getsignal(number)) in usual}

    def end(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise ERRORS[signal.Signals(number)]

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])
