"""Two ranks train, normalise and measure as one process does; torchrun's part is played by the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import two_ranks  # noqa: E402
from torch import nn

from deeppatch.distributed import data_parallel


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str], Path]:
    """What each of two ranks found, what each printed, and where they worked."""
    place = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    marks = str(tmp_path_factory.mktemp("marks") / "marks")
    shared = {
        "MARKS": marks,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return [torch.load(place / f"rank{rank}.pt") for rank in range(2)], ["".join(each) for each in said], place


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    return two_ranks.work(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_two_ranks_find_what_one_process_finds(both, alone):
    found = [rank["work"] for rank in both[0]]
    assert found[0].keys() == found[1].keys() == alone.keys()
    for name, want in alone.items():
        if name in ("checkpoint keys", "counted"):  # of wrappers the keys say nothing; counts are whole numbers
            assert found[0][name] == found[1][name] == want
            continue
        if name == "asked":
            assert sum(rank[name] for rank in found) == want, "no filter is ablated twice"
            assert all(0.2 * want < rank[name] < 0.8 * want for rank in found)
            continue
        # training is in double precision, its mean loss is not
        close = {"rtol": 1e-6, "atol": 0} if "history" in name else {"rtol": 1e-8, "atol": 1e-9}
        for rank in found:
            torch.testing.assert_close(rank[name], want, **close, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
def test_training_changed_something(alone):
    before = two_ranks.network().state_dict()
    for name in ("finetune divided", "finetune plain"):
        assert not torch.allclose(alone[name]["network.conv1.weight"], before["network.conv1.weight"], atol=1e-3)
    assert len(alone["predictions"].unique()) > 1


@pytest.mark.slow
def test_ranks_count_share_and_sum(both):
    first, second = (rank["layers"] for rank in both[0])
    assert (first.pop("rank"), second.pop("rank")) == ((0, 2, 2), (1, 2, 2))
    assert (first.pop("first here"), second.pop("first here")) == ("0", "01")
    assert first == second == {
        "bfloat16": "torch.bfloat16", "gathered": [{"rank": 0}, {"rank": 1}], "first": 40, "total": [2.0, 1.0],
        "stack": [[0, 5], [1, 5]],
    }  # fmt: skip


@pytest.mark.slow
def test_rank_0_alone_speaks_and_writes(both):
    said, place = both[1], both[2]
    assert "one voice" in said[0]
    assert said[1] == ""
    assert {path.name for path in place.iterdir()} == {"checkpoint.pt", "rank0.pt", "rank1.pt"}


def test_layers_over_ranks_are_torchs_own_in_one_process():
    assert two_ranks.layers()["rank"] == (0, 1, 1)


def test_one_rank_trains_the_model_itself():
    model = nn.Linear(2, 2)
    with data_parallel.replicated(model) as replica:
        assert replica is model
    batches = [(torch.rand(3, 2), torch.arange(3))]
    assert list(data_parallel.own_shards(batches)) == [(batches[0], 1.0)]


def test_on_cuda_torchs_own_normalisation_works_on_the_same_tensors():
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
    twin = data_parallel._norm_on_cuda(norm)
    assert isinstance(twin, nn.SyncBatchNorm)
    assert (twin.eps, twin.momentum, twin.training) == (1e-3, 0.3, True)
    for name, value in norm.state_dict(keep_vars=True).items():
        assert getattr(twin, name) is value
