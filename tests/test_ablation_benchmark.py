"""The benchmark of HybridRepair's settings: each row changes one, and one small run on digits."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ablation(monkeypatch):
    """Return the script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ablation")


def test_every_row_differs_from_the_published_one_in_one_setting(ablation):
    options = ablation.parser().parse_args([])
    words = ablation.shared(options, "B", 1)
    usual = vars(ablation.parsed("relearn", ablation.relearning(options, ablation.PUBLISHED, words)))
    for name in ablation.ROWS:
        found = vars(ablation.parsed("relearn", ablation.relearning(options, name, words)))
        changed = {key for key in found if found[key] != usual[key]} - {"command", "defaults"}
        named = {word[2:] for word in " ".join(ablation.ROWS[name]).split() if word.startswith("--")}
        assert changed == named, f"{name} changes all that it names, and nothing else"
        assert len(changed) == {ablation.PUBLISHED: 0, "coreset from the pool": 2}.get(name, 1), name
    assert len(options.seeds) == 5


def test_rows_stand_in_two_tables_beside_the_published_one(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation.machine, "prepared", torch.device)
    run_stage, started = ablation.machine.run_stage, []
    monkeypatch.setattr(
        ablation.machine, "run_stage", lambda name, words: started.append(name) or run_stage(name, words)
    )
    words = f"--seeds 5 --limit 60 --budget 4 -e 1 --base_epochs 1 --device cpu --output_dir {tmp_path}"
    given = [*words.split(), "--output", f"{tmp_path}/table.csv", "--relearn", "--image_size 16 --max_batches 1 -b 16",
             "--rows", "published", "no pseudo-labels", "2 rounds"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "ablation.py"), *given])
    ablation.main()
    assert started == ["pretrain", "annotate", "relearn", "relearn", "annotate", "relearn"]
    ablation.main()
    assert len(started) == 6, "what is finished is not run again"
    found = pd.read_csv(tmp_path / "table.csv")
    assert found["row"].tolist() == ["published", "no pseudo-labels", "2 rounds"]
    assert found["against published"].isna().tolist() == [True, False, False]
    assert found["labels"].tolist() == [4, 4, 4]
    every = pd.read_csv(tmp_path / "table-seeds.csv")
    assert every["row"].tolist() == ["warm start", *found["row"]]
    assert json.loads((tmp_path / "table.json").read_text())["options"]["budget"] == "4"
