"""modularize as a command: what it leaves, both searches, resumption after a kill, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from deeppatch import training
from deeppatch.artifacts import Checkpoint
from deeppatch.data.sources import load
from deeppatch.data.splits import halves, split
from deeppatch.modular import analysis, genetic_search, gradient_search
from deeppatch.modular.genetic import PopulationSearch
from deeppatch.modular.modules import Modules
from deeppatch.training import fit, predict

pytestmark = pytest.mark.slow  # stages from end to end, each some seconds

FIXED = "-m rescnn_svhn_weak -d digits_5 --limit 150 --device cpu"
GRAD = "modularize --budget 8 --sensitivity_images 30"
GA = "modularize --method ga --budget 2 --sensitivity_images 30 --search_images 40"
FILES = {
    "run.json", "modules.safetensors", "modules.csv", "history.csv", "sensitivity.csv", "metrics.json", "kept.png",
    "overlap.png", "search.png",
}  # fmt: skip


class Place:
    """An output folder with a strong network on five digits."""

    def __init__(self, output: Path, launch, runs_in) -> None:
        self.output, self.launch = output, launch
        self.runs = runs_in(output / "digits_5" / "rescnn_svhn_weak")

    def run(self, line: str):
        script, *rest = shlex.split(line)
        return self.launch(script, [*FIXED.split(), "--output_dir", str(self.output), *rest])

    def ran(self, line: str) -> str:
        result = self.run(line)
        assert (result.status, result.err) == (0, ""), result.err
        return result.out

    def folder(self, name: str) -> Path:
        return self.runs.at(f"{name}-limit150")

    def left(self, name: str) -> dict[str, Any]:
        """What a run left, but for wall times: the hash of every file, and what metrics.json says."""
        files = [path for path in self.folder(name).iterdir() if path.name not in ("run.json", "metrics.json")]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        metrics = json.loads((self.folder(name) / "metrics.json").read_text())
        return {**hashes, **metrics}


@pytest.fixture(scope="module")
def done(tmp_path_factory, launch, runs_in) -> Place:
    """The strong network, split by both searches; tests change nothing."""
    place = Place(tmp_path_factory.mktemp("modularize") / "output", launch, runs_in)
    place.ran("eval --train -e 30 -b 16 --lr 0.02")
    for line in (GRAD, GA):
        place.ran(line)
    return place


@pytest.fixture
def fresh(done, tmp_path, runs_in) -> Place:
    """A copy that has only the strong network."""
    place = Place(tmp_path / "output", done.launch, runs_in)
    shutil.copytree(done.folder("pretrain"), place.runs.root / done.folder("pretrain").name)
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
    assert "seconds" not in metrics, "bytes repeat"
    seconds = json.loads((folder / "run.json").read_bytes())["seconds"]
    assert list(seconds) == ["analysis", "search", "evaluation"]
    assert all(each > 0 for each in seconds.values())
    sensitivity = pd.read_csv(folder / "sensitivity.csv")
    assert list(sensitivity["layer"]) == ["conv_0.0+conv_2.0", "conv_1.0"]
    assert metrics["sensitive_layers"] == list(sensitivity.loc[sensitivity["sensitive"], "layer"])


def test_epochs_is_another_name_of_budget(done, fresh):
    fresh.ran(GA.replace("--budget", "--epochs"))
    assert fresh.left("modularize-ga") == done.left("modularize-ga")


def test_the_composed_model_is_what_metrics_say(done):
    metrics = json.loads((done.folder("modularize-grad") / "metrics.json").read_text())
    assert metrics["composed_accuracy_percent"] > 40, "five classes, chance is 20"
    assert metrics["method"] == "grad"
    assert metrics["candidates_evaluated"] is None
    searched = json.loads((done.folder("modularize-ga") / "metrics.json").read_text())
    history = pd.read_csv(done.folder("modularize-ga") / "history.csv")
    assert searched["candidates_evaluated"] == history["evaluated"].sum() > 5 * 50
    assert searched["composed_accuracy_percent"] > 40


@pytest.mark.slow
def test_modules_of_digits_are_nearly_as_accurate_as_the_network_with_far_fewer_kernels(tmp_path, launch):
    fixed = f"-m rescnn_svhn_weak -d digits_5 --device cpu --output_dir {tmp_path}".split()
    search = "--no_head --budget 6 --lr 0.01 --search_images 320 --sensitivity_images 5 -b 64"
    for script, line in (("eval", "--train -e 8 --lr 0.02 -b 32"), ("modularize", search)):
        assert launch(script, [*fixed, *line.split()]).status == 0
    (path,) = tmp_path.glob("digits_5/*/modularize-grad-no-head-*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["strong_accuracy_percent"] > 95
    assert metrics["composed_accuracy_percent"] > metrics["strong_accuracy_percent"] - 3
    assert metrics["kernels_kept_percent"] < 80


def test_the_same_seed_gives_the_same_bytes(done, fresh):
    for line, name in ((GRAD, "modularize-grad"), (GA, "modularize-ga")):
        fresh.ran(line)
        assert fresh.left(name) == done.left(name)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("line", "name"), [(GRAD, "modularize-grad"), (GA, "modularize-ga")])
@pytest.mark.parametrize("saves", [pytest.param(1, marks=pytest.mark.slow), 4])
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
    assert not fresh.folder(name).exists()
    fresh.ran(f"{line} -r")
    assert fresh.left(name) == done.left(name)
    assert "finished already" in fresh.ran(f"{line} -r")


def test_importance_and_holdout_read_val_alone(fresh, monkeypatch):
    """Filtering to a class and then splitting would let four fifths of trained images in; halves must be disjoint."""
    source = load("digits_5", Path("data"), 2021)
    parts = split(source, 2021, 150)
    seen = []
    real = analysis.measured_importance
    monkeypatch.setattr(analysis, "measured_importance", lambda *a: seen.append(a[3]) or real(*a))
    fresh.ran(GRAD)
    ((x, labels),) = seen
    assert len(x) == len(parts.val)
    assert torch.equal(labels, parts.val.labels)
    one, two = halves(parts.val, 2021, "digits_5")
    together = torch.cat([one.pixels, two.pixels]).flatten(1)
    assert len(together) == len(parts.val)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, parts.val.pixels.flatten(1).numpy()))


def test_the_gradient_search_trains_on_train_and_chooses_by_val(fresh, monkeypatch):
    streams, views = [], []
    monkeypatch.setattr(gradient_search, "fit", lambda model, epochs, *a, **k: (
        streams.extend(epochs) or fit(model, epochs, *a, **k)))  # fmt: skip
    monkeypatch.setattr(training, "predict", lambda model, view, **k: views.append(view) or predict(model, view, **k))
    fresh.ran(GRAD)
    parts = split(load("digits_5", Path("data"), 2021), 2021, 150)
    assert (len(streams), len(views)) == (8, 9), "of the strong model too"
    for read, part in ((streams, parts.train), (views, parts.val)):
        assert all(torch.equal(each.images.pixels, part.pixels) for each in read)
        assert all(torch.equal(each.images.labels, part.labels) for each in read)


def test_a_published_preset_weighs_no_size(fresh, monkeypatch):
    searches = []
    monkeypatch.setattr(
        genetic_search, "PopulationSearch", lambda *a: searches.append(PopulationSearch(*a)) or searches[-1]
    )
    fresh.ran("modularize --method ga --preset rescnn-svhn_5 --budget 1 --sensitivity_images 30 --search_images 40")
    assert len(searches[0].labels) == 40
    history = pd.read_csv(fresh.folder("modularize-ga-rescnn-svhn_5") / "history.csv")
    expected = 0.9 * history["holdout_accuracy"] + 0.1 * history["dissimilarity"]
    assert history["value"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_network_with_parameter_free_shortcuts_is_split(fresh):
    small = "-m resnet20a --limit 40 -b 20"
    fresh.ran(f"eval --train -e 1 {small}")
    said = fresh.ran(f"modularize --no_head --budget 1 --sensitivity_images 5 {small}")
    assert "10 convolutions keep all of their kernels" in said
    (path,) = fresh.output.glob("digits_5/resnet20a/modularize-grad*/metrics.json")
    assert json.loads(path.read_text())["kernels"] == 3 * (16 + 32 + 64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "modularize --budget 0 --sensitive 0.05 0.55",
            "--budget 0: give a whole number above 0; --sensitive 0.05 0.55",
        ),
        ("modularize --patience 3", "--patience can only be used with --method ga"),
        ("modularize --scale_scores", "give --no_head as well"),
        ("modularize --method ga --scale_scores", "--scale_scores can only be used with --method grad"),
        ("modularize --method ga --no_head", "--no_head can only be used with --method grad"),
        ("modularize --method ga --shared 1", "--shared can only be used with --method grad"),
        ("modularize --tune_epochs -1", "--tune_epochs -1: give 0 or more"),
        ("modularize --tune_epochs 1 --tune_lr 0", "--tune_lr 0.0: give a number above 0"),
        ("modularize --tune_lr 0.1", "--tune_lr can only be used with --tune_epochs"),
        ("modularize --seed 7", "src/eval.py -m rescnn_svhn_weak -d digits_5 --seed 7"),
        ("modularize -m shufflenetv2_x1_0", "src/eval.py"),
    ],
)
def test_a_mistake_is_one_line(done, line, message):
    result = done.run(line)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1
