"""One writer for each folder: live owners are named, dead ones displaced, and nobody's live lock is taken."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeppatch import lock as module
from deeppatch.errors import Busy
from deeppatch.lock import FolderLock, released_at_end


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "output" / "stage"


def write_owner(lock: FolderLock, **owner) -> None:
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    lock.path.write_text(json.dumps({"process": 1, "started": "1", "host": socket.gethostname(), **owner}))


@pytest.fixture
def other_process():
    """A process that lives while the test runs."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_released_lock_leaves_nothing(folder):
    lock = FolderLock(folder)
    lock.acquire()
    assert lock.path.exists()
    lock.release()
    assert not folder.parent.exists(), "not even the folder that was made for it"


def test_a_living_owner_is_named_and_keeps_its_lock(folder, other_process):
    lock = FolderLock(folder)
    write_owner(lock, process=other_process, started=module._started(other_process))
    with pytest.raises(Busy, match=rf"process {other_process} on {socket.gethostname()}; wait until it has ended"):
        lock.acquire()
    assert json.loads(lock.path.read_bytes())["process"] == other_process


@pytest.mark.parametrize("how", ["ended", "another process has its number", "torn", "this process, earlier"])
def test_a_dead_owner_s_lock_is_taken_over(folder, other_process, how):
    lock = FolderLock(folder)
    if how == "ended":
        done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        write_owner(lock, process=int(done.stdout))
    elif how == "torn":
        lock.path.parent.mkdir(parents=True)
        lock.path.write_text("{")
    else:
        process = os.getpid() if how.startswith("this") else other_process
        write_owner(lock, process=process, started=module._started(process) if how.startswith("this") else "earlier")
    lock.acquire()
    assert json.loads(lock.path.read_bytes())["process"] == os.getpid()
    lock.release()


@pytest.mark.parametrize(("silence", "busy"), [(10, True), (400, False)])
def test_an_owner_on_another_host_is_dead_after_five_silent_minutes(folder, silence, busy):
    lock = FolderLock(folder)
    write_owner(lock, host="elsewhere")
    os.utime(lock.path, (time.time() - silence,) * 2)
    if busy:
        with pytest.raises(Busy, match="on elsewhere"):
            lock.acquire()
    else:
        lock.acquire()
        lock.release()


def test_a_lock_gives_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    lock = FolderLock(folder)
    lock.acquire()
    os.utime(lock.path, (0, 0))
    end = time.monotonic() + 10
    while lock.path.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert lock.path.stat().st_mtime > 0
    lock.release()


def test_locks_of_a_run_are_released_however_it_ends(folder):
    with pytest.raises(KeyboardInterrupt), released_at_end():
        FolderLock(folder).acquire()
        raise KeyboardInterrupt
    FolderLock(folder).acquire()


def compete(folder, start, queue) -> None:
    start.wait()
    lock = FolderLock(folder)
    try:
        lock.acquire()
        queue.put("taken")
        time.sleep(2)
        lock.release()
    except Busy:
        queue.put("refused")


def test_of_many_that_meet_a_dead_owner_one_takes_over(folder):
    write_owner(FolderLock(folder), process=2**22 + 1)
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    processes = [context.Process(target=compete, args=(folder, start, queue)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    found = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["refused"] * 7 + ["taken"]
    assert [path.name for path in folder.parent.iterdir()] == []


def test_an_attempt_of_a_killed_process_goes_with_the_next_lock(folder):
    folder.parent.mkdir(parents=True)
    (folder.parent / ".stage.lock.4194305-0a1b2c3d").write_text("{")
    lock = FolderLock(folder)
    assert lock.path.name == ".stage.lock"
    lock.acquire()
    assert [path.name for path in folder.parent.iterdir()] == [".stage.lock"]
    lock.release()


def test_an_attempt_that_another_owner_has_deleted_is_made_again(folder, monkeypatch):
    link, gone = os.link, []

    def late(mine, path):
        if not gone:
            gone.append(mine)
            Path(mine).unlink()
        link(mine, path)

    monkeypatch.setattr(os, "link", late)
    FolderLock(folder).acquire()
    assert gone
