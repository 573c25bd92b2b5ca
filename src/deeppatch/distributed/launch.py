"""Runs that torchrun starts as several processes: join them, print from rank 0 only, and end them together.

Torch is imported only under torchrun, so that a command with one process starts fast.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deeppatch.errors import RankLost, RequirementsBroken, UserError


def requested_ranks() -> int:
    """Return the number of processes that torchrun starts; 1 without torchrun."""
    given = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return int(os.environ["WORLD_SIZE"]) if given <= os.environ.keys() else 1


def resume_command(command: str) -> str:
    """Return the torchrun command that resumes `command` (`python SCRIPT ...` or an installed one)."""
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    if requested_ranks() > local_ranks:
        return "the same torchrun command and -r on every machine"
    program = command.removeprefix("python ") if command.startswith("python ") else f"--no-python {command}"
    resume = "" if {"-r", "--resume"} & set(command.split()) else " -r"
    return f"torchrun --nproc-per-node {local_ranks} {program}{resume}"


@contextmanager
def joined_ranks(command: str) -> Iterator[None]:
    """Join the other ranks within the block; with one process nothing is done.

    Only rank 0 prints. When a rank ends too early, the others raise RankLost or get SIGTERM from torchrun, and one of
    them reports how to resume `command`. SIGTERM to torchrun itself reaches all ranks too; a rank that gets it exits
    with status 143. An error that occurs on all ranks is reported by one of them; the others exit silently.
    """
    if requested_ranks() == 1:
        yield
        return
    from deeppatch.distributed import ranks

    store = ranks.join()
    key = f"deeppatch/reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def reports_first() -> bool:
        try:
            return bool(store.add(key, 1) == 1)
        except RuntimeError:  # the machine that held the store has ended
            return True

    go_on = f"finished work is kept, go on with: {resume_command(command)}"
    lost, told = f"a process of this run has ended; {go_on}", f"SIGTERM has ended this run, or a part of it; {go_on}"
    with _exit_on_sigterm(lambda: _write_stderr(f"error: {told}\n") if reports_first() else None):
        try:
            with _only_rank0_prints():
                yield
                ranks.leave()
        except RuntimeError as error:
            known = ranks.is_lost_rank(error)
            if not reports_first() and known:
                raise SystemExit(2) from None
            if not known:
                raise
            raise RankLost(lost) from error
        except (UserError, OSError, KeyboardInterrupt, RequirementsBroken) as error:
            if not reports_first():
                statuses = {KeyboardInterrupt: 130, RequirementsBroken: 1}
                raise SystemExit(statuses.get(type(error), 2)) from None
            raise


@contextmanager
def _only_rank0_prints() -> Iterator[None]:
    from deeppatch import runtime

    if runtime.rank() == 0:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextmanager
def _exit_on_sigterm(report: Callable[[], object]) -> Iterator[None]:
    """Call `report` and end this process on SIGTERM, even while a collective blocks the main thread.

    torchrun ends the remaining ranks with SIGTERM. Python runs signal handlers in the main thread, once that returns
    to Python code; a thread that reads the wakeup descriptor is notified at once.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while received := reader.recv(1):
            if received[0] == signal.SIGTERM:
                report()
                os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        writer.close()


def _write_stderr(message: str) -> None:
    os.write(2, message.encode())
