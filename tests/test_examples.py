"""README's example is short and runs; the programs under examples/ run, in time, and show a repair."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60  # of processor time, of both cores


def test_the_example_of_readme_is_short_and_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"<!-- python example -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    pixels, labels = torch.rand(80, 3, 16, 20), torch.arange(80) % 4
    train_loader, test_loader = (DataLoader(TensorDataset(pixels[part], labels[part]), 16)
                                 for part in (slice(60), slice(60, 80)))  # fmt: skip
    known = {"network": network, "train_loader": train_loader, "test_loader": test_loader}
    exec(compile(code, "README.md", "exec"), known)  # noqa: S102
    table = capsys.readouterr().out
    assert all(row in table for row in ("before", "patched", "switched"))
    assert torch.isfinite(known["switched"](pixels)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["switched.safetensors"]


def run(name: str) -> tuple[str, float]:
    """Return what an example prints, and the seconds of processor time that it takes."""
    before, started = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 0, done.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, min(used, time.monotonic() - started)


def rows(table: str) -> dict[str, list[float]]:
    """Return the numbers of a printed table by the first word of each row."""
    found = [line.split() for line in table.splitlines()]
    return {
        words[0]: [float(word) for word in words[1:]]
        for words in found
        if len(words) > 1 and all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words[1:])
    }


@pytest.mark.slow
def test_own_model_is_repaired_against_noise_and_jpeg():
    out, seconds = run("own_model.py")
    table = rows(out)
    clean, degraded = 0, 1
    assert table["patched"][degraded] > table["before"][degraded] + 2
    assert table["switched"][degraded] > table["before"][degraded] + 2
    assert table["switched"][clean] >= table["before"][clean] - 2
    assert seconds < SECONDS


@pytest.mark.slow
def test_own_loop_repairs():
    out, seconds = run("own_loop.py")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", out)]
    assert len(losses) == 5
    table = rows(out)
    assert table["patched"][1] > table["before"][1]
    assert seconds < SECONDS


@pytest.mark.slow
def test_labels_are_chosen_and_learned():
    out, seconds = run("labels.py")
    assert re.search(r"label these \d+ images", out)
    table = rows(out)
    assert table["repaired"][0] > table["before"][0] + 5  # 11 to 21 points over six seeds
    assert seconds < SECONDS
