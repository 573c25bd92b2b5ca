"""Which stages may be started by torchrun; what becomes of a killed process is in the campaign."""

from __future__ import annotations

import contextlib

import pytest

from deeppatch.distributed import launch


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
