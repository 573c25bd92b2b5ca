"""The benchmarks run, and count the work that they time."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from deeppatch.graph.hooks import convolutions
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

pytestmark = pytest.mark.slow  # each starts a process and imports everything there
ROOT = Path(__file__).resolve().parents[1]
FILTERS = sum(conv.out_channels for conv in convolutions(ARCHITECTURES["resnet8"](10)).values())


def timed(command: str, table: Path) -> pd.DataFrame:
    """Run a benchmark on one thread, and return the table that it writes."""
    done = subprocess.run(
        [sys.executable, *command.split(), "--output", str(table)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "DEEPPATCH_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return pd.read_csv(table)


def test_assess_times_every_way_and_with_weights_an_elimination(tmp_path):
    model = Classifier(ARCHITECTURES["resnet8"](10), [0.5] * 3, [0.25] * 3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    command = f"benchmarks/assess.py -m resnet8 -d digits --weights {tmp_path}/weights.safetensors --device cpu"
    command += " --images 8 --loaded 8 --eliminated 20 --sweeps 1"
    table = timed(command, tmp_path / "times.csv").set_index("way")
    assert len(table) == 8
    assert table.index[-1] == "ours, eliminating 0.1, 120 images"
    # of 6,000 images, in minutes
    whole = table.us_a_filter_and_image * FILTERS * 6_000 / 60e6
    assert table.minutes_for_6000_images.tolist() == pytest.approx(whole.tolist(), rel=1e-4)
    assert table.us_a_filter_and_image.idxmin() == "taylor (an estimate)", "one pass for all filters"
    assert table.us_a_filter_and_image.idxmax().startswith("published: "), "which starts processes for 8 images"
    assert table.times_in_memory["in-memory loop, whole pass"] == 1


def test_switched_counts_what_the_router_looks_at_and_nothing_else(tmp_path):
    command = "benchmarks/switched.py -m resnet8 -b 4 --rounds 2 --device cpu"
    table = timed(command, tmp_path / "times.csv").set_index("batch")
    assert list(table.index) == ["all clean", "all degraded", "50/50", "plain, a copy", "plain, not folded"]
    work = table.million_multiply_adds
    assert work["plain, a copy"] == work["plain, not folded"]
    glance = 4 * 2 * 4 * 3 * 9 * 32 * 32 / 1e6  # 4 images, 4 filters of 3x3x3 in two versions, 32x32 places
    for kind in ("all clean", "all degraded", "50/50"):
        assert work[kind] - work["plain, a copy"] == pytest.approx(glance)
    for row in table.itertuples():
        low, high = map(float, row.quartiles.split(" to "))
        assert low - 0.1 <= row.overhead_percent <= high + 0.1, "the median lies between the quartiles"
    facts = json.loads((tmp_path / "times.json").read_text())
    assert facts["commands"][0].startswith(f"python {command} --output ")
    assert (facts["n"], facts["seeds"], facts["threads"], facts["options"]["rounds"]) == (1, [2021], 1, "2")
    assert facts["images"] == "random, batches of 4"
    assert facts["hardware"].endswith(f"1 thread, torch {facts['torch']}")


def test_hybrid_views_times_both_ways_and_the_parts_of_a_selection(tmp_path):
    command = "benchmarks/hybrid_views.py -m resnet8 --images 16 --views 2 --pool 120 --rounds 1 --device cpu"
    table = timed(command, tmp_path / "times.csv").set_index("part")
    assert list(table.index[:2]) == ["views", "badge"]
    assert len(table) == 7
    assert "4 labelled images and 12 of the pool" in table.note["safe step"]
    assert table.us_an_item["views"] == pytest.approx(1e6 * table.seconds["views"] / (16 * 2))
    assert table.us_an_item["badge"] == pytest.approx(1e6 * table.seconds["badge"] / (120 // 20))
    ratio = table.usual_seconds / table.seconds
    assert ratio["views"] == pytest.approx(table.times_as_fast["views"])
    assert "0.0 MB against 0.3 MB" in table.note["badge"]


def test_modules_times_candidates_and_generations_of_both_sides(tmp_path):
    command = "benchmarks/modules.py -m resnet8 -d digits --images 40 --population 12 --compositions 8 --every 20"
    table = timed(command, tmp_path / "times.csv").set_index(["side", "generation"])
    few = "ours, a quarter of the images"
    assert table.images.unstack().T.to_dict("list") == {"plain": [40, 40], "ours": [40, 40], few: [10, 10]}
    passes = table.generation_seconds - table.composing_seconds
    assert (passes * table.candidates_a_second)["plain"].tolist() == pytest.approx([120, 120])
    assert (passes * table.candidates_a_second)["ours"].tolist() == pytest.approx([120, 10 * (12 - 4)], rel=0.02)
    assert (table.share_of_passes["plain"] == 1).all()
    assert table.share_of_passes["ours"].between(0.2, 0.99).all(), "who drops out is not run on everything"
    times = table.generation_seconds["plain"] / table.generation_seconds["ours"]
    assert table.generation_times_as_fast["ours"].tolist() == pytest.approx(times.tolist())


def test_corruptions_times_every_type_and_their_sum(tmp_path):
    command = "benchmarks/corruptions.py --images 8 --plain 2 --rounds 1 --device cpu"
    table = timed(command, tmp_path / "times.csv").set_index("corruption")
    assert len(table) == 21
    inside = table.drop(["sum of 16", "sum of 17", "jpeg_compression", "glass_blur"])
    total, without_spatter = table.loc["sum of 17"], table.loc["sum of 16"]
    assert total.ours_us == pytest.approx(inside.ours_us.sum(), rel=0.01)
    assert without_spatter.plain_us == pytest.approx(inside.plain_us.drop("spatter").sum(), rel=0.01)
    assert without_spatter.times_plain == pytest.approx(without_spatter.plain_us / without_spatter.ours_us, rel=0.05)
    assert pd.isna(total.plain_us), "spatter is a loop over pixels there"
    facts = json.loads((tmp_path / "times.json").read_text())
    assert facts["images"] == "8 random pictures of 32 pixels, 2 of them one by one"


def test_routers_are_measured_beside_what_bounds_them(tmp_path):
    model = Classifier(ARCHITECTURES["resnet8"](10), [0.5] * 3, [0.25] * 3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    command = f"benchmarks/routers.py -m resnet8 -d digits --weights {tmp_path}/weights.safetensors --device cpu"
    command += " --train_images 60 --epochs 1 --ranking random --families gaussian_blur --calibration 60 --images 40"
    command += " --severity 3 --routers probe benefit-both average --max_clean_drop 50 100"
    table = timed(command, tmp_path / "table.csv").set_index("router")
    both = table.loc[["original", "patched always on"]]
    assert len(table) == 5 + 3 * 2
    assert table["mean"]["better network of each cell"] >= both["mean"].max()
    assert table["mean"]["better network of each image"] >= table["mean"].max()
    for name, same in (("probe, 100", "patched always on"), ("average, 100", "mean of probabilities")):
        assert table["mean"][name] == pytest.approx(table["mean"][same]), "everything switches"
    assert (table.clean_lost <= table.clean_lost_bound).all()
    assert table.clean_lost["original"] == 0
    assert table.benefit_auroc.isna().sum() >= 5


def test_correct_takes_turns_with_an_earlier_revision(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout, so no revisions")
    command = "benchmarks/training.py -m resnet8 -b 4 --batches 1 --rounds 2 --device cpu --earlier HEAD"
    table = timed(command, tmp_path / "epochs.csv").set_index("method")
    assert table.index.tolist() == ["finetune", "replace", "replace, plain", "crtunit"]
    assert table.epoch_of_finetune["finetune"] == table.epoch_of_plain["replace, plain"] == 1
    assert table.epoch_of_earlier.between(0.05, 20).all()
    assert "--earlier HEAD" in json.loads((tmp_path / "epochs.json").read_text())["commands"][0]


def test_an_unknown_revision_is_one_line(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    earlier = importlib.import_module("earlier")
    with (
        pytest.raises(SystemExit, match="--earlier no-such-one: git knows no such revision"),
        earlier.epochs_of("no-such-one", {}),
    ):
        pass


@pytest.fixture
def repair(monkeypatch):
    """Return the script that repairs a published network over several seeds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("repair")


@pytest.mark.parametrize("given", [["--weights", "mine.th"], []])
def test_repair_reads_given_weights_or_those_that_pretrain_fetches(repair, given):
    stage, arguments = next(repair.steps(repair.parser().parse_args(given), 7))
    assert stage == "pretrain"
    assert [word for word in arguments if word in ("--weights", "mine.th")] == given


def test_repair_names_the_revision_of_the_stages_and_of_what_collected_them(repair):
    assert repair.made_by(["a", "a"], "a") == {"revision": "a"}
    later = {"revision": "a", "note": "the stages ran at revision a, their tables were collected at b"}
    assert repair.made_by(["a", "a"], "b") == later
    assert repair.made_by(["a", "b"], "b")["revision"] == "revisions a, b"
    assert repair.made_by([None], None) == {"revision": None}


def test_reuse_compares_both_uses_with_their_controls(tmp_path):
    few = "--images 60 --seeds 1 --models 2 --epochs 2 --train_epochs 1 --lr 1e-4 --device cpu"
    table = timed(f"benchmarks/reuse.py -m simcnn_svhn_weak {few}", tmp_path / "reuse.csv").set_index(
        ["part", "network"]
    )
    assert list(table.loc["better"].index) == [
        "assembled", "base models together", "assembled, scores as published", "best base model", "mean of base models",
        "base 0", "base 1",
    ]  # fmt: skip
    controls = ["base models together", "trained from scratch", "assembled, scores as published"]
    assert list(table.loc["new task"].index) == ["assembled", *controls]
    bases = table.loc["better"].loc[["base 0", "base 1"], "accuracy"]
    assert table.loc[("better", "mean of base models"), "accuracy"] == pytest.approx(bases.mean())
    assert table["f1"].notna().sum() == 2


def test_splitting_and_modular_training_leave_a_row_for_each_setting(tmp_path):
    few = "-m simcnn_svhn_weak --images 60 --seeds 1 --epochs 2 --train_epochs 1 --lr 1e-4 --device cpu"
    table = timed(f"benchmarks/splitting.py {few} --generations 1 --sensitivity_images 10", tmp_path / "s.csv")
    assert len(table) == 9
    table = table.set_index("settings")
    assert table.loc["grad, published", "kernels_kept"] == 100, "two epochs are too few for thresholds of one"
    places = {"pooled": "ga, importance behind pooling", "unpooled": "ga, ours", "random": "ga, random importance"}
    found = {place: table.loc[name, "importance_accuracy"] for place, name in places.items()}
    assert found["pooled"] == table.loc["grad, ours", "importance_accuracy"]
    assert found["unpooled"] == table.loc["grad, importance before pooling", "importance_accuracy"]
    assert found["random"] == table.loc["grad, random importance", "importance_accuracy"]
    few += " --targets 0 3 --weak_epochs 1 --tune_epochs 1"
    states = tmp_path / "states"
    table = timed(f"benchmarks/modular_training.py {few} --states {states}", tmp_path / "m.csv")
    assert list(table["training"]) == ["plain"] * 3 + ["modular 0.3 1 1"] * 2
    assert list(table["search"]) == ["usual", *["selective", "selective, tuned"] * 2]
    kept = table.set_index(["training", "search"])["kernels_kept"].unstack("search")
    assert (kept["selective"] == kept["selective, tuned"]).all(), "tuning keeps the kernels"
    assert table["pairwise_overlap"].between(0, 100).all()
    assert table["weak_f1"].nunique() == 1, "the weak models are the same"
    assert table[["patched_precision", "patched_recall", "patched_f1"]].stack().between(0, 100).all()
    saved = {path.name: path.stat().st_mtime_ns for path in states.iterdir()}
    parts = [f"{name}{part}" for name in ("plain", "modular-0.3-1-1") for part in ("", "-selective", "-tuned")]
    assert saved.keys() == {f"{name}-seed1.state" for name in [*parts, "plain-usual", "weak-0", "weak-3"]}
    again = timed(f"benchmarks/modular_training.py {few} --states {states}", tmp_path / "again.csv")
    pd.testing.assert_frame_equal(again, table)
    assert {path.name: path.stat().st_mtime_ns for path in states.iterdir()} == saved, "nothing is trained again"
