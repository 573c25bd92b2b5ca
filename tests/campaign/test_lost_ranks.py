"""torchrun with two processes, one of which is killed, or both ended by SIGTERM: one line, and -r goes on."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forked import ENVIRONMENT
from workshop import LINES, difference, tree_of

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to tell the processes apart"),
]

ROOT = Path(__file__).resolve().parents[2]
SOON = 30.0  # seconds after which all have ended
# a file that says that work has been kept, and the number of processes that go on
KEPT = {
    "assess": (".assess-*.unfinished/checkpoint.pt", 3),
    "correct-finetune": (".correct-finetune-*.unfinished/checkpoint.pt", 1),
    "compare": ("cells/[!.]*.safetensors", 3),
}
WHY = ("error: a process of this run has ended; ", "error: SIGTERM has ended this run, or a part of it; ")


def torchrun(workshop, name: str, processes: int, more: str = "") -> subprocess.Popen[str]:
    """Start a stage as several processes."""
    script, *arguments = shlex.split(f"{LINES[name]} {more}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*launcher, f"src/{script}.py", *arguments, "--output_dir", str(workshop.output)], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip


def rank_of(launcher: subprocess.Popen[str], number: int) -> int | None:
    """Return the process id of a rank, once it has one."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            mine = int(parent) == launcher.pid
            if mine and f"RANK={number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    return None


def struck(launcher: subprocess.Popen[str], folder: Path, kept: str, number: int | None) -> bool:
    """Kill a rank, or end torchrun, as soon as work has been kept; return whether it came to that before the end."""
    rank = None
    while launcher.poll() is None:
        rank = rank or rank_of(launcher, number or 0)
        if rank and list(folder.glob(kept)):
            if number is None:
                launcher.terminate()
            else:
                os.kill(rank, signal.SIGKILL)
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("number", [0, 1, None], ids=["first killed", "second killed", "SIGTERM"])
@pytest.mark.parametrize("name", [name for name in KEPT if name in LINES])
def test_a_killed_rank_ends_the_run_and_others_go_on(workshop, count, name, number):
    workshop.restore(name)
    network, (kept, processes) = workshop.output / "digits" / "resnet8", KEPT[name]
    if name == "compare":
        shutil.rmtree(network / "cells", ignore_errors=True)
    launcher = torchrun(workshop, name, 2)
    caught = struck(launcher, network, kept, number)
    start = time.monotonic()
    out, err = launcher.communicate(timeout=600)
    seconds = time.monotonic() - start
    wrong = "" if caught else f"nothing was kept before it ended: {err[-300:]}"
    wrong = wrong or problem(launcher.returncode, out, err, seconds)
    if not wrong:
        wrong = gone_on(workshop, name, processes)
    moment = f"{'SIGTERM to' if number is None else f'process {number} of'} 2, then {processes}"
    count("lost process", name, moment, "failed" if wrong else "identical", wrong, seconds)


def problem(status: int, out: str, err: str, seconds: float) -> str:
    """Return what is wrong with the end of a run that has lost a process."""
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    if not status or seconds > SOON:
        return f"status {status} after {seconds:.0f} s"
    if len(said) != 1 or not said[0].startswith(WHY) or "go on with: torchrun --nproc-per-node 2 src/" not in said[0]:
        return f"not one line: {said}"
    # torchrun reports at length itself
    return "a traceback" if "Traceback" in err.split("torch/distributed/elastic")[0] + out else ""


def gone_on(workshop, name: str, processes: int) -> str:
    """Return what differs from the undisturbed stage when so many processes have gone on."""
    if processes == 1:
        ended = workshop.resume(name)
        status, err = ended.status, ended.err
    else:
        launcher = torchrun(workshop, name, processes, "-r")
        _out, err = launcher.communicate(timeout=600)
        status = launcher.returncode
    if status:
        return f"status {status}: {err[-300:]}"
    (folder,) = workshop.folders_of(name)
    if name != "correct-finetune":
        trees = [without_ranks(tree) for tree in (workshop.done[name].tree, tree_of(workshop.output))]
        return difference(*trees)
    # trained by several processes for some epochs: equal to rounding
    paths = [place / folder / "weights.safetensors" for place in (workshop.place / f"after-{name}", workshop.output)]
    want, found = (safetensors.torch.load_file(path) for path in paths)
    close = [name for name in want if torch.allclose(found[name].float(), want[name].float(), rtol=5e-3, atol=5e-3)]
    return "" if want.keys() == found.keys() == set(close) else f"{sorted(want.keys() - set(close))} are other"


def without_ranks(tree: dict) -> dict:
    """Return a tree without what records say of the number of processes."""
    return {
        name: {key: each for key, each in value.items() if key not in ("ranks", "threads")}
        if isinstance(value, dict)
        else value
        for name, value in tree.items()
    }
