"""torchrun with two CPU ranks: a rank is killed, one line says how to go on, and the end is that of one process."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from deeppatch.distributed import launch

ROOT = Path(__file__).resolve().parents[2]
LINE = "correct -c finetune --crt_epoch 5 --lr 0.01"
STAGE = "correct-finetune"


def torchrun(bench, line: str) -> subprocess.Popen[str]:
    """Start a stage as two ranks."""
    script, arguments = bench.arguments(line)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, f"src/{script}.py", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "DEEPPATCH_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def rank_of(launcher: subprocess.Popen[str], number: int) -> int:
    """Return the process id of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            mine = int(parent) == launcher.pid
            if mine and f"RANK={number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise LookupError(number)


def killed_at(launcher: subprocess.Popen[str], bench, stage: str) -> None:
    """Wait until a stage's checkpoint is there, and kill rank 1."""
    end = time.monotonic() + 100
    while not (found := bench.left_over(stage)) and launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    assert found, launcher.kill() or launcher.communicate()
    os.kill(rank_of(launcher, 1), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to tell the ranks apart")
def test_a_killed_rank_ends_the_run_and_it_goes_on_to_what_one_process_trains(pretrained, chain, tmp_path):
    launcher = torchrun(pretrained, LINE)
    killed_at(launcher, pretrained, STAGE)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    command = " ".join(["src/correct.py", *pretrained.arguments(LINE)[1]])
    assert len(said) == 1, said
    why, _, what = said[0].partition("; ")
    # the first whom a rank tells that it has lost the other: a collective, or torchrun
    assert why in ("error: a process of this run has ended", "error: SIGTERM has ended this run, or a part of it")
    assert what == f"finished work is kept, go on with: torchrun --nproc-per-node 2 {command} -r"
    assert "Traceback" not in err.split("torch/distributed/elastic")[0], "only torchrun reports at length"
    assert out.count("inherited") == 1, "one rank speaks"
    assert pretrained.left_over(STAGE) == {"checkpoint.pt"}
    other = chain.copy(tmp_path / "other", "pretrain")
    shutil.copytree(pretrained.unfinished(STAGE), other.root / pretrained.unfinished(STAGE).name)

    launcher = torchrun(pretrained, f"{LINE} -r")
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, err
    assert out.count("resumed after epoch ") == 1
    assert "resumed after epoch " in other.ran(f"{LINE} -r").out, "one process goes on with what two began"
    whole = chain.copy(tmp_path / "whole", "pretrain")
    whole.ran(LINE)
    assert pretrained.files(STAGE) == other.files(STAGE) == whole.files(STAGE)
    assert pretrained.json(f"{STAGE}/run.json")["ranks"] == 2
    want = safetensors.torch.load_file(whole.at(STAGE) / "weights.safetensors")
    for bench in (pretrained, other):
        found = safetensors.torch.load_file(bench.at(STAGE) / "weights.safetensors")
        assert found.keys() == want.keys()
        for name, tensor in want.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=2e-3, atol=2e-3, msg=lambda text, n=name: f"{n}: {text}"
            )
        assert bench.json(f"{STAGE}/metrics.json")["best_epoch"] == whole.json(f"{STAGE}/metrics.json")["best_epoch"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to tell the ranks apart")
def test_a_ranking_whose_rank_is_killed_goes_on_to_what_one_process_ranks(pretrained, chain, tmp_path):
    stage, line = "assess-perfloss-race0.2", "select -f perfloss --race 0.2 -b 36"
    launcher = torchrun(pretrained, line)
    killed_at(launcher, pretrained, stage)
    _out, err = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert err.count("; finished work is kept, go on with: torchrun --nproc-per-node 2 ") == 1
    assert pretrained.left_over(stage) == {"checkpoint.pt"}
    content = (pretrained.unfinished(stage) / "checkpoint.pt").read_bytes()[32:]  # behind its digest
    state = torch.load(io.BytesIO(content), weights_only=True)["state"]
    assert any(state["current"].values()), "what was found in the middle of a batch is kept"

    launcher = torchrun(pretrained, f"{line} -r")
    _out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, err
    one = chain.copy(tmp_path / "one", "pretrain")
    one.ran(line)
    assert pretrained.hashes(stage) == one.hashes(stage)
    assert pretrained.files(stage) == one.files(stage)


@pytest.fixture
def two(monkeypatch):
    """An environment as torchrun makes it, in which nobody waits for the other rank."""
    monkeypatch.setattr(launch, "requested_ranks", lambda: 2)
    monkeypatch.setattr(launch, "joined_ranks", lambda _command: contextlib.nullcontext())
    return monkeypatch


@pytest.mark.parametrize(
    ("line", "stage"), [("eval -e 1", "pretrain"), ("switch", "evaluate"), ("influence", "influence")]
)
def test_a_stage_of_one_process_refuses_torchrun(pretrained, two, line, stage):
    said = pretrained.refused(line)
    assert said.startswith(f"{stage} runs as one process; start it without torchrun: python src/")
    assert pretrained.files("pretrain") == {
        "history.csv",
        "metrics.csv",
        "metrics.json",
        "run.json",
        "weights.safetensors",
    }
