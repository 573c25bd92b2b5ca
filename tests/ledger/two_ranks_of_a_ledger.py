"""What tests/ledger/test_two_ranks.py has two ranks do, and one process as well."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))

import torch
from torch import Tensor, nn

from deeppatch.data.images import Images
from deeppatch.distributed import launch
from deeppatch.ledger import measuring
from deeppatch.ledger.comparing import compare

Found = tuple[dict[tuple[str, str], list[Tensor]], list[str]]


def work(cells: Path) -> Found:
    """Compare two networks, and return their outcomes and the names of the views that were measured here."""
    torch.manual_seed(0)
    networks = {name: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for name in ("one", "two")}
    images = Images(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 4)
    with mock.patch.object(measuring, "answers_on", wraps=measuring.answers_on) as measured:
        ledger = compare(networks, images, "fog,contrast", cells=cells, batch_size=8)
    outcomes = {
        key: [torch.from_numpy(getattr(each, name)) for name in measuring.NAMES[:-1]]
        for key, each in ledger.outcomes.items()
    }
    return outcomes, [call.args[0].view.name for call in measured.call_args_list]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with launch.joined_ranks("python compare.py"):
        found = work(Path(sys.argv[1]))
    torch.save(found, sys.argv[2])
