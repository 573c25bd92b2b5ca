"""The benchmark of test-time adaptation, from its options to its two tables, on digits."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from deeppatch.data.corruptions import corruption
from deeppatch.data.dataset import load_data
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.training import train_patch
from deeppatch.saving import save
from deeppatch.zoo.loading import load_classifier

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """Return the script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("adaptation")


def test_methods_and_fixed_networks_stand_in_two_tables(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.machine, "prepared", torch.device)
    data = load_data("digits", limit=40)
    model = load_classifier("resnet8", 10)
    patch = train_patch(model, data, corruption("fog", severity="5"), {"conv1": [0, 1]}, epochs=1)
    switched = fit_switch(model, patch, data, corruption("fog", severity="5"))
    made = {"base": model, "patch": patch, "router": switched.router}
    files = [save(value, tmp_path / f"{name}.safetensors") for name, value in made.items()]
    words = (
        f"-m resnet8 -d digits --weights {files[0]} --limit 40 -n fog,contrast --methods source bn-1 bn-prior "
        f"--streams mixed single --networks tuned={files[0]} --switched {files[1]} {files[2]} --reference tuned "
        f"--per_corruption 20 --single 2 -b 10 --seeds 1 2 --clean --device cpu --output {tmp_path / 'table.csv'}"
    )
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "adaptation.py"), *words.split()])
    benchmark.main()
    table = pd.read_csv(tmp_path / "table.csv")
    rows = ["tuned", "patched always on", "switched", "source", "bn-1", "bn-prior"]
    assert table["method"].tolist() == rows * 4
    assert table["seed"].tolist() == [1] * 12 + [2] * 12
    assert table["n"].tolist() == ([60] * 6 + [6] * 6) * 2
    own = table[table["method"].isin(["tuned", "source"])]
    assert own.groupby(["seed", "stream"])["accuracy"].nunique().eq(1).all(), "the same weights"
    assert table[table["method"] == "switched"]["neighbours"].eq(False).all()
    types = pd.read_csv(tmp_path / "table-types.csv")
    assert set(types["type"]) == {"clean", "fog-5", "contrast-5"}
    assert len(types) == 3 * len(table)
    facts = json.loads((tmp_path / "table.json").read_text())
    assert facts["seeds"] == [1, 2]
    assert facts["images"] == "20 test images of digits for each of 3 levels, 2 in the stream single"
    assert facts["note"].startswith("prior counts of bn-prior, chosen on val: ")
    assert "switched" in capsys.readouterr().out


def test_a_network_has_a_name_and_a_file(benchmark):
    assert benchmark.named_file("a=b/c=d") == ("a", Path("b/c=d"))
    with pytest.raises(argparse.ArgumentTypeError, match="weights: write NAME=FILE"):
        benchmark.named_file("weights")
    assert benchmark.parser().parse_args(["--severity", "none"]).severity is None
