"""modularize as a command: what it leaves, both searches, resumption after a kill, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.commands import analysing
from deeppatch.data.sources import load
from deeppatch.data.splits import halves, split
from deeppatch.modular.modules import Modules

FIXED = "-m rescnn_svhn_weak -d digits_5 --limit 150 --device cpu"
GRAD = "modularize --budget 8 --sensitivity_images 30"
GA = "modularize --method ga --budget 2 --sensitivity_images 30 --search_images 40"
FILES = {
    "run.json", "modules.safetensors", "modules.csv", "history.csv", "sensitivity.csv", "metrics.json", "kept.png",
    "overlap.png", "search.png",
}  # fmt: skip


class Place:
    """An output folder with a strong network on five digits."""

    def __init__(self, output: Path, launch) -> None:
        self.output, self.launch = output, launch

    def run(self, line: str):
        script, *rest = shlex.split(line)
        return self.launch(script, [*FIXED.split(), "--output_dir", str(self.output), *rest])

    def ran(self, line: str) -> str:
        result = self.run(line)
        assert (result.status, result.err) == (0, ""), result.err
        return result.out

    def folder(self, name: str) -> Path:
        return self.output / "digits_5" / "rescnn_svhn_weak" / f"{name}-limit150"

    def hashes(self, name: str) -> dict[str, str]:
        """What a run left, but for wall times."""
        files = [path for path in self.folder(name).iterdir() if path.name not in ("run.json", "metrics.json")]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory, launch) -> Place:
    """The strong network, split by both searches; tests change nothing."""
    place = Place(tmp_path_factory.mktemp("modularize") / "output", launch)
    place.ran("eval --train -e 30 -b 16 --lr 0.02")
    for line in (GRAD, GA):
        place.ran(line)
    return place


@pytest.fixture
def fresh(done, tmp_path) -> Place:
    """A copy that has the strong network alone."""
    shutil.copytree(done.folder("pretrain"), (place := Place(tmp_path / "output", done.launch)).folder("pretrain"))
    return place


@pytest.mark.parametrize("name", ["modularize-grad", "modularize-ga"])
def test_a_search_leaves_exactly_these_files_and_what_they_say_agrees(done, name):
    folder = done.folder(name)
    assert {path.name for path in folder.iterdir()} == FILES
    metrics = json.loads((folder / "metrics.json").read_text())
    modules = Modules.from_bytes((folder / "modules.safetensors").read_bytes(), folder)
    table, history = pd.read_csv(folder / "modules.csv"), pd.read_csv(folder / "history.csv")
    assert metrics["kernels"] == 24
    assert metrics["kernels_kept_percent"] == pytest.approx(100 * modules.shares().mean().item(), abs=1e-4)
    assert table["kernels_kept_percent"].mean() == pytest.approx(metrics["kernels_kept_percent"], abs=1e-3)
    assert (table["multiply_adds"] <= metrics["multiply_adds"]).all()
    assert metrics["chosen"] == history.loc[history["best"]].iloc[0, 0]
    assert history["best"].sum() == 1
    assert set(metrics["seconds"]) == {"analysis", "search"}
    sensitivity = pd.read_csv(folder / "sensitivity.csv")
    assert list(sensitivity["layer"]) == ["conv_0.0+conv_2.0", "conv_1.0"]
    assert metrics["sensitive_layers"] == list(sensitivity.loc[sensitivity["sensitive"], "layer"])


def test_the_composed_model_is_what_metrics_say(done):
    metrics = json.loads((done.folder("modularize-grad") / "metrics.json").read_text())
    assert metrics["composed_accuracy_percent"] > 40, "five classes, chance is 20"
    assert metrics["method"] == "grad"
    assert metrics["candidates_evaluated"] is None
    searched = json.loads((done.folder("modularize-ga") / "metrics.json").read_text())
    assert searched["candidates_evaluated"] > 5 * 50
    assert searched["composed_accuracy_percent"] > 40


def test_the_same_seed_gives_the_same_bytes(done, fresh):
    for line, name in ((GRAD, "modularize-grad"), (GA, "modularize-ga")):
        fresh.ran(line)
        assert fresh.hashes(name) == done.hashes(name)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("line", "name"), [(GRAD, "modularize-grad"), (GA, "modularize-ga")])
@pytest.mark.parametrize("saves", [1, 4])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(done, fresh, monkeypatch, line, name, saves):
    count = []
    save = Checkpoint.save

    def killing(self, state):
        save(self, state)
        count.append(1)
        if len(count) == saves:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", killing)
        with pytest.raises(Killed):
            fresh.run(line)
    assert not (fresh.folder(name) / "run.json").exists()
    fresh.ran(f"{line} -r")
    expected = done.hashes(name)
    found = fresh.hashes(name)
    if "ga" in name:  # candidates that live on are run once more
        found.pop("history.csv"), expected.pop("history.csv")
    assert found == expected
    assert "finished already" in fresh.ran(f"{line} -r")


def test_importance_and_holdout_read_val_alone(done, monkeypatch):
    """Filtering to a class and then splitting would let four fifths of trained images in; halves must be disjoint."""
    source = load("digits_5", Path("data"), 2021)
    parts = split(source, 2021, 150)
    seen = []
    real = analysing.importances
    monkeypatch.setattr(analysing, "importances", lambda *a: seen.append((a[2], a[3])) or real(*a))
    assert done.run(f"{GRAD} --alpha 0.1 --budget 1").status == 0
    ((x, labels),) = seen
    assert len(x) == len(parts.val)
    assert torch.equal(labels, parts.val.labels)
    one, two = halves(parts.val, 2021, "digits_5")
    together = torch.cat([one.pixels, two.pixels]).flatten(1)
    assert len(together) == len(parts.val)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, parts.val.pixels.flatten(1).numpy()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "modularize --budget 0 --sensitive 0.05 0.55",
            "--budget 0: give a whole number above 0; --sensitive 0.05 0.55",
        ),
        ("modularize --patience 3", "--patience goes with --method ga only"),
        ("modularize --method ga --no_head", "--no_head goes with --method grad only"),
        ("modularize --seed 7", "src/eval.py -m rescnn_svhn_weak -d digits_5 --seed 7"),
        ("modularize -m shufflenetv2_x1_0", "src/eval.py"),
    ],
)
def test_a_mistake_is_one_line(done, line, message):
    result = done.run(line)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1
