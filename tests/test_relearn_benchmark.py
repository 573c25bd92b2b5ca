"""The benchmark of relearn: its table against figures worked out by hand, and one run on digits."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t

from deeppatch.hybrid.names import METHODS
from deeppatch.metrics import paired_difference, share_interval, unpaired_difference

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def table(monkeypatch):
    """Return the module with the table's functions."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("relearn_table")


@pytest.fixture
def benchmark(monkeypatch):
    """Return the script, which has the name of a stage's script, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "relearn", raising=False)
    yield importlib.import_module("relearn")
    sys.modules.pop("relearn", None)


def runs(*given: tuple[str, int, str, int, int]) -> pd.DataFrame:
    """Return runs of (bias, seed, row, newly right, newly wrong) on 200 test images, 140 of them right at the start."""
    rows = [
        {
            "bias": bias, "seed": seed, "row": row, "raw_percent": 68.0, "start_percent": 70.0,
            "percent": 70 + (fixed - broken) / 2, "gained_points": (fixed - broken) / 2, "fixed": fixed,
            "broken": broken, "labels": 0 if row == "prior" else 9, "test_images": 200, "seconds": 10.0 * seed,
        }
        for bias, seed, row, fixed, broken in given
    ]  # fmt: skip
    return pd.DataFrame(rows)


def student(values: list[float]) -> tuple[float, float, float]:
    mean, spread = np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5
    reach = t.ppf(0.975, len(values) - 1) * spread
    return mean, mean - reach, mean + reach


def test_intervals_are_over_seeds_and_differences_are_paired_by_seed(table):
    gains = {"random": [(6, 2), (8, 10), (9, 3)], "mcp": [(12, 2), (6, 4), (20, 4)]}
    frame = runs(*(("B", seed, row, *each) for row, found in gains.items() for seed, each in enumerate(found, 1)))
    found = table.table(frame).set_index("row")
    points = {row: [(fixed - broken) / 2 for fixed, broken in each] for row, each in gains.items()}
    pairs = [mcp - drawn for mcp, drawn in zip(points["mcp"], points["random"], strict=True)]
    assert found.loc["mcp", "gain"] == "{:+.2f} [{:+.2f}, {:+.2f}]".format(*student(points["mcp"]))
    assert found.loc["mcp", "against random"] == "{:+.2f} [{:+.2f}, {:+.2f}]".format(*student(pairs))
    assert found.loc["mcp", "accuracy"] == "{:.2f} [{:.2f}, {:.2f}]".format(
        *student([70 + each for each in points["mcp"]])
    )
    assert found.loc["random", "against random"] == ""
    assert found["seeds below the start"].to_dict() == {"random": 1, "mcp": 0}
    assert found.loc["mcp", ["seeds", "labels", "newly right", "newly wrong", "seconds"]].tolist() == [
        3,
        9,
        12.7,
        3.3,
        20,
    ]


def test_one_seed_has_intervals_over_its_images(table):
    found = table.table(runs(("C", 4, "random", 6, 2), ("C", 4, "prior", 16, 4))).set_index("row")
    before, after = torch.zeros(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
    after[:16], before[16:20] = True, True
    gain = paired_difference(after, before).scaled(100)
    assert found.loc["prior", "gain"] == f"+6.00 [{gain.low:+.2f}, {gain.high:+.2f}]"
    share = share_interval(152, 200).scaled(100)
    assert found.loc["prior", "accuracy"] == f"76.00 [{share.low:.2f}, {share.high:.2f}]"
    apart = unpaired_difference(0.76, 0.72, 200).scaled(100)
    assert found.loc["prior", "against random"] == f"+4.00 [{apart.low:+.2f}, {apart.high:+.2f}]"


def test_only_seeds_that_both_rows_have_are_compared(table):
    frame = runs(("A", 1, "random", 4, 0), ("A", 2, "random", 0, 0), ("A", 2, "mcp", 6, 0), ("A", 3, "mcp", 90, 0))
    apart = unpaired_difference(0.73, 0.70, 200).scaled(100)
    found = table.table(frame).set_index("row")
    assert found.loc["mcp", "against random"] == f"+3.00 [{apart.low:+.2f}, {apart.high:+.2f}]"
    alone = table.table(frame[frame["seed"].isin([1, 3])]).set_index("row")
    assert alone.loc["mcp", "against random"] == ""


def test_the_warm_start_is_read_once_a_seed_from_what_was_trained(table):
    frame = runs(("B", 1, "prior", 9, 1), ("B", 1, "mcp", 3, 1), ("A", 1, "mcp", 2, 2), ("A", 2, "mcp", 2, 0))
    frame.loc[0, "start_percent"] = 12.0
    found = table.with_starts(frame)
    order = [("B", "warm start"), ("B", "prior"), ("B", "mcp")]
    order += [("A", "warm start"), ("A", "warm start"), ("A", "mcp"), ("A", "mcp")]
    assert list(zip(found["bias"], found["row"], strict=True)) == order
    starts = found[found["row"] == "warm start"]
    assert starts["percent"].tolist() == [70.0] * 3
    assert not starts[["gained_points", "fixed", "broken", "labels"]].any(axis=None)
    shown = table.table(found)
    assert shown.loc[0, "gain"] == ""


def test_every_choice_has_a_row_with_labels(benchmark):
    assert set(METHODS) - set(benchmark.ROWS) == {"ssl-random", "ssl-consistency-imp"}
    for name in set(METHODS) & set(benchmark.ROWS) - {"prior"}:
        assert benchmark.ROWS[name] == ["--method", name, "--use", "labels", "--pseudo_labels", "published"]
        assert benchmark.chosen_by(name) == name
    assert benchmark.chosen_by("prior") is None
    assert benchmark.chosen_by("mcp safe") == "mcp"
    assert benchmark.relearning(benchmark.parser().parse_args([]), "prior") == ["--method", "prior", "-e", "10"]


def test_rows_are_run_once_and_stand_in_two_tables(benchmark, tmp_path, monkeypatch, capsys):
    machine, ledger = benchmark.machine, importlib.import_module("ledger")
    monkeypatch.setattr(machine, "prepared", torch.device)
    started = []
    monkeypatch.setattr(ledger, "stage", lambda name, words: started.append(name) or machine.run_stage(name, words))
    words = "-m resnet8 -d digits --bias B --seeds 5 --limit 60 --rows margin random --budget 4 --views 1 -e 1"
    words += f" --base_epochs 1 --device cpu --output_dir {tmp_path} --output {tmp_path}/table.csv"
    given = [*words.split(), "--pretrain", "--lr 0.1", "--relearn", "--steps 1"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "relearn.py"), *given])
    benchmark.main()
    assert started == ["pretrain", "annotate", "annotate", "relearn", "relearn"]
    first = (tmp_path / "table.csv").read_bytes()
    benchmark.main()
    assert len(started) == 5, "what is finished is not run again"
    assert (tmp_path / "table.csv").read_bytes() == first
    found = pd.read_csv(tmp_path / "table.csv")
    assert found["row"].tolist() == ["margin", "random"], "the warm start was not asked for"
    assert found["labels"].tolist() == [4, 4]
    every = pd.read_csv(tmp_path / "table-seeds.csv")
    assert every["row"].tolist() == ["warm start", "margin", "random"]
    assert every["start_percent"].nunique() == 1
    facts = json.loads((tmp_path / "table.json").read_text())
    assert (facts["seeds"], facts["n"], facts["options"]["budget"]) == ([5], 1, "4")
    assert facts["images"] == f"{every['test_images'][0]} test images (T2) of digits"
    assert "against random" in capsys.readouterr().out
    for path in tmp_path.glob("digits/resnet8/annotate-margin*/selection.safetensors"):
        path.write_bytes(b"other")
    options = benchmark.parser().parse_args(given)
    wanted = [*benchmark.with_base(options, "B", 5), *benchmark.relearning(options, "margin")]
    assert benchmark.finished("relearn", wanted) is None, "it was made from another selection"


@pytest.mark.parametrize("given", [["--rows", "warm start"], ["--rows", "random", "--relearn", "--no_such_option"]])
def test_a_mistake_is_told_before_anything_is_trained(benchmark, monkeypatch, given):
    monkeypatch.setattr(benchmark, "at_once", lambda *_given: pytest.fail("a stage was started"))
    monkeypatch.setattr(sys, "argv", ["relearn.py", *given])
    with pytest.raises(SystemExit):
        benchmark.main()
