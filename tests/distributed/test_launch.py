"""How a run that torchrun starts ends: who speaks, what is said, and with which status."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deeppatch.distributed import launch, ranks
from deeppatch.errors import RankLost, UserError

SRC = Path(__file__).resolve().parents[2] / "src"


class Store(dict):
    """Stands in for the store that all ranks see; `said` before where another rank has spoken."""

    def add(self, key: str, amount: int) -> int:
        self[key] = self.get(key, 0) + amount + self.get("said", 0)
        return self[key]


def set_ranks(monkeypatch, here: str, ranks: str) -> None:
    """Set the environment that torchrun gives its first process."""
    told = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": ranks}
    for name, value in {**told, "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def torchrun(monkeypatch):
    """Two ranks' environment, of which this process is one and the other does not exist."""
    store = Store()
    set_ranks(monkeypatch, "2", "2")
    monkeypatch.setattr(ranks, "join", lambda: store)
    monkeypatch.setattr(ranks, "leave", lambda: store.update(left=1))
    return store


@pytest.mark.parametrize("said", [{}, {"WORLD_SIZE": "4", "RANK": "1"}])
def test_without_torchrun_nothing_is_joined(monkeypatch, said):
    """Clusters set some of these names too, for launchers of their own."""
    set_ranks(monkeypatch, "2", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "join", lambda: pytest.fail("joined"))
    with launch.joined_ranks("python src/correct.py"):
        assert launch.requested_ranks() == 1


def test_a_run_that_ends_well_is_left_and_its_signals_are_set_back(torchrun):
    before = signal.getsignal(signal.SIGTERM)
    with launch.joined_ranks("python src/correct.py"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert torchrun == {"left": 1}


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("no"), 2), (OSError(28, "no"), 2), (KeyboardInterrupt(), 130)]
)
@pytest.mark.parametrize("said", [0, 1])
def test_of_a_mistake_that_all_ranks_meet_one_speaks(torchrun, error, status, said):
    torchrun["said"] = said
    with pytest.raises(SystemExit if said else type(error)) as caught, launch.joined_ranks("python src/correct.py"):
        raise error
    assert not said or caught.value.code == status


@pytest.mark.parametrize("said", [0, 1])
def test_a_failed_collective_is_one_line_with_the_command_that_goes_on(torchrun, said):
    torchrun["said"] = said
    with pytest.raises(SystemExit if said else RankLost) as caught, launch.joined_ranks("python src/correct.py -d x"):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    if not said:
        assert str(caught.value).endswith("go on with: torchrun --nproc-per-node 2 src/correct.py -d x -r")


def test_a_mistake_of_ours_keeps_its_traceback(torchrun):
    with pytest.raises(RuntimeError, match="shape"), launch.joined_ranks("python src/correct.py"):
        raise RuntimeError("shape mismatch")
    assert sum(torchrun.values()) == 1, "the others are told that somebody has spoken"


@pytest.mark.parametrize(
    ("command", "here", "ranks", "want"),
    [
        ("python src/correct.py -c patch", "2", "2", "torchrun --nproc-per-node 2 src/correct.py -c patch -r"),
        ("python src/correct.py -r", "4", "4", "torchrun --nproc-per-node 4 src/correct.py -r"),
        ("deeppatch correct", "2", "2", "torchrun --nproc-per-node 2 --no-python deeppatch correct -r"),
        ("python src/correct.py", "4", "8", "the same torchrun command and -r on every machine"),
    ],
)
def test_the_command_that_goes_on(monkeypatch, command, here, ranks, want):
    set_ranks(monkeypatch, here, ranks)
    assert launch.resume_command(command) == want


def test_sigterm_is_heard_while_the_main_thread_is_blocked():
    code = (
        "import ctypes, sys; sys.path.append(sys.argv[1]); from deeppatch.distributed import launch\n"
        "with launch._exit_on_sigterm(lambda: launch._write_stderr('last words\\n')):\n"
        "    system, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)\n"
        "    system.pthread_mutex_lock(mutex); print('ready', flush=True)\n"
        "    system.pthread_mutex_lock(mutex)  # waits for ever, and no signal interrupts it\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(SRC)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    with contextlib.closing(process.stdout):
        assert process.communicate(timeout=20)[1] == "last words\n"
    assert process.returncode == 128 + signal.SIGTERM
