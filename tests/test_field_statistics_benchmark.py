"""The benchmark of statistics that are estimated on unlabelled images from the field, on digits: options to table."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from deeppatch.data.dataset import load_data
from deeppatch.patching.training import train_patch
from deeppatch.saving import save
from deeppatch.zoo.loading import load_classifier

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """Return the script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("field_statistics")


def test_the_same_images_are_measured_by_all_and_none_of_those_that_gave_the_statistics(
    benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark.machine, "prepared", torch.device)
    given = []
    whole = benchmark.reestimate_statistics
    monkeypatch.setattr(
        benchmark, "reestimate_statistics", lambda model, patch, images: given.append(images) or whole(
            model, patch, images
        )
    )  # fmt: skip
    model, data = load_classifier("resnet8", 10), load_data("digits", limit=60)
    patch = train_patch(model, data, "gaussian-blur", {"conv1": [0, 1]}, epochs=1)
    files = [save(value, tmp_path / f"{name}.safetensors") for name, value in (("base", model), ("patch", patch))]
    words = (
        f"-m resnet8 -d digits --weights {files[0]} --patch {files[1]} --limit 60 -n fog --sigma 2 --field 20 "
        f"--images 30 -b 10 --device cpu --output {tmp_path / 'table.csv'}"
    )
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "field_statistics.py"), *words.split()])
    benchmark.main()
    table = pd.read_csv(tmp_path / "table.csv")
    networks = [
        "pretrained", "patched always on", "statistics estimated again", "pretrained, batch statistics",
        "patched, batch statistics",
    ]  # fmt: skip
    assert set(table.network) == set(networks)
    assert table.degradation.tolist() == ["blur s=2"] * 5 + ["fog-5"] * 5
    assert [len(each) for each in given] == [20, 20]
    assert not torch.equal(*given), "each degradation has its own"
    assert all(round(share * 30 / 100, 1).is_integer() for share in table.clean)
    assert table.clean[table.network == "pretrained"].nunique() == 1
    assert table["degraded, change"].isna().sum() == 2, "the patch itself"
    assert table["depends on its batch"].sum() == 4
    facts = json.loads((tmp_path / "table.json").read_text())
    assert facts["images"] == "30 test images of digits, statistics of 20 others"
