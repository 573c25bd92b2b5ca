"""Two processes share the views of a ledger, and both end with what one process has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deeppatch.ledger import measuring

WORK = """
import sys
sys.path.append(sys.argv[1])
import torch
from torch import nn
from deeppatch.data.images import Images
from deeppatch.distributed import launch, ranks
from deeppatch.ledger import measuring
from deeppatch.ledger.comparing import compare

def main(cells):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = {name: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for name in ("one", "two")}
    images = Images(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 4)
    measured = []
    whole = measuring.answers_on
    measuring.answers_on = lambda stream, *given, **more: measured.append(stream.view.name) or whole(
        stream, *given, **more)
    ledger = compare(networks, images, "fog,contrast", cells=cells, batch_size=8)
    outcomes = {key: [torch.from_numpy(getattr(each, name)) for name in measuring.NAMES[:-1]]
                for key, each in ledger.outcomes.items()}
    return outcomes, measured

with launch.joined_ranks("python compare.py"):
    found = main(sys.argv[2])
torch.save(found, sys.argv[3])
"""


def run(source: Path, cells: Path, *places: Path) -> list[tuple[dict, list[str]]]:
    """Run the work in one process for each place, and return what each has left there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = str(len(places))
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank, place in enumerate(places):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if len(places) > 1 else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORK, str(source), str(cells), str(place)],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        )
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(places), said
    return [torch.load(place) for place in places]


@pytest.mark.slow
def test_two_ranks_share_the_cells(tmp_path):
    source = Path(measuring.__file__).parents[2]
    cells = tmp_path / "cells"
    (alone,) = run(source, tmp_path / "of one", tmp_path / "alone.pt")
    both = run(source, cells, tmp_path / "first.pt", tmp_path / "second.pt")
    assert len(alone[1]) == 12, "clean, twice five, mixed"
    assert sorted(both[0][1] + both[1][1]) == sorted(alone[1]), "each view is measured by one of them"
    assert {len(names) for _outcomes, names in both} == {6}
    for outcomes, _names in both:
        assert outcomes.keys() == alone[0].keys()
        assert all(np.array_equal(one, two) for key in outcomes for one, two in zip(outcomes[key], alone[0][key],
                                                                                   strict=True))  # fmt: skip
    names = [{path.name for path in folder.iterdir()} for folder in (cells, tmp_path / "of one")]
    assert names[0] == names[1]
    again = run(source, cells, tmp_path / "first.pt", tmp_path / "second.pt")
    assert [names for _outcomes, names in again] == [[], []]
