"""Two processes share the views of a ledger, and both end with what one process has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import two_ranks_of_a_ledger as two_ranks  # noqa: E402


def side_by_side(cells: Path, *places: Path) -> list[two_ranks.Found]:
    """Run the work as one rank for each place, and return what each has left there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = str(len(places))
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(cells), str(place)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, place in enumerate(places)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(places), said
    return [torch.load(place) for place in places]


@pytest.mark.slow
def test_two_ranks_share_the_cells(tmp_path):
    cells = tmp_path / "cells"
    alone = two_ranks.work(tmp_path / "of one")
    both = side_by_side(cells, tmp_path / "first.pt", tmp_path / "second.pt")
    assert len(alone[1]) == 12, "clean, twice five, mixed"
    assert sorted(both[0][1] + both[1][1]) == sorted(alone[1]), "each view is measured by one of them"
    assert {len(names) for _outcomes, names in both} == {6}
    for outcomes, _names in both:
        assert outcomes.keys() == alone[0].keys()
        assert all(
            torch.equal(one, two) for key in outcomes for one, two in zip(outcomes[key], alone[0][key], strict=True)
        )
    names = [{path.name for path in folder.iterdir()} for folder in (cells, tmp_path / "of one")]
    assert names[0] == names[1]
    assert two_ranks.work(cells)[1] == [], "nothing is left to measure"
