"""compose as a command: weak models trained and reused, modules joined, what is measured and left, resumption."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from deeppatch import training
from deeppatch.artifacts import state_digest
from deeppatch.cli.compose import report
from deeppatch.data import sources, views
from deeppatch.data.splits import split
from deeppatch.modular import joining
from deeppatch.modular.heads import Heads
from deeppatch.modular.layers import find_layers
from deeppatch.modular.modules import Modules
from deeppatch.modular.weak_networks import published_weak_network
from deeppatch.stage import Stage
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

pytestmark = pytest.mark.slow  # stages from end to end, each some seconds

LIMIT = 100
FIXED = f"-m simcnn_svhn_weak -d digits_5 --limit {LIMIT} --device cpu"
FILES = {"run.json", "table.csv", "metrics.json", "ranges.json", "corrected.png"}
# the weak models that the bench has
WEAK = "--weak_epoch 3"
LINE = f"compose --method ga {WEAK}"
JOINS = ["min_max", "percentile", "outlier", "norm", "calibrate"]


@dataclass
class Place:
    """An output folder with a strong network on five digits, and modules of it."""

    output: Path
    launch: Callable
    runs_in: Callable

    def run(self, line: str):
        script, *rest = shlex.split(line)
        return self.launch(script, [*FIXED.split(), "--output_dir", str(self.output), *rest])

    def ran(self, line: str) -> str:
        result = self.run(line)
        assert (result.status, result.err) == (0, ""), result.err
        return result.out

    def runs(self, data: str = "digits_5"):
        return self.runs_in(self.output / data / "simcnn_svhn_weak")

    def folder(self, name: str = "compose-ga-simple") -> Path:
        return self.runs().at(f"{name}-limit{LIMIT}")

    def weak(self, target: int) -> Path:
        return self.runs(f"digits-mix-{target}").at(f"pretrain-limit{LIMIT}")

    def hashes(self, folder: Path) -> dict[str, str]:
        files = [path for path in folder.iterdir() if path.name != "run.json"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def copy(self, output: Path) -> Place:
        shutil.copytree(self.output, output)
        return Place(output, self.launch, self.runs_in)


def restored(path: Path, classes: int = 5) -> Classifier:
    state = safetensors.torch.load_file(path)
    mean, std = (state[f"normalize.{key}"].flatten().tolist() for key in ("mean", "std"))
    model = Classifier(ARCHITECTURES["simcnn_svhn_weak"](classes), mean, std)
    model.load_state_dict(state)
    return model.eval()


def leave_modules(place: Place, name: str, *, heads: bool) -> Modules:
    """Write modules as modularize does: each without one kernel of each layer, that its class needs least."""
    strong = restored(place.folder("pretrain") / "weights.safetensors")
    layers = find_layers(strong.network, torch.rand(2, 3, 32, 32))
    masks = {layer.name: torch.ones(5, layer.kernels, dtype=torch.bool) for layer in layers}
    for number, mask in enumerate(masks.values()):
        mask[:, number] = False
    torch.manual_seed(1)
    modules = Modules(state_digest(strong.state_dict()), masks, Heads(5, 5) if heads else None)
    stage = Stage(place.output, place.folder(name), {"settings": {}})
    stage.write("modules.safetensors", modules.to_bytes())
    stage.finish()
    return modules


@pytest.fixture(scope="module")
def done(tmp_path_factory, launch, runs_in) -> Place:
    """All five digits corrected once; tests change nothing."""
    place = Place(tmp_path_factory.mktemp("compose") / "output", launch, runs_in)
    place.ran("eval --recipe strong -e 40 -b 10 --lr 0.02")
    leave_modules(place, "modularize-ga", heads=False)
    leave_modules(place, "modularize-grad", heads=True)
    place.ran(LINE)
    return place


@pytest.fixture
def fresh(done, tmp_path) -> Place:
    """A copy with the strong network, its modules and the weak models, but nothing composed."""
    place = done.copy(tmp_path / "output")
    shutil.rmtree(place.folder())
    return place


def table(place: Place, name: str = "compose-ga-simple") -> pd.DataFrame:
    frame = pd.read_csv(place.folder(name) / "table.csv", dtype={"class": str})
    return frame.set_index(["class", "join"])


def test_it_leaves_exactly_these_files_and_the_weak_models_where_pretrain_does(done):
    assert {path.name for path in done.folder().iterdir()} == FILES
    for target in range(5):
        left = {path.name for path in done.weak(target).iterdir()}
        assert left == {"run.json", "weights.safetensors", "history.csv", "metrics.json", "metrics.csv"}
        assert json.loads((done.weak(target) / "run.json").read_text())["settings"]["recipe"] == "weak"


def test_a_weak_model_has_the_bytes_that_the_command_it_names_makes(done, tmp_path, launch, runs_in):
    other = Place(tmp_path / "output", launch, runs_in)
    shutil.copytree(done.output / "digits_5", other.output / "digits_5")
    shutil.rmtree(other.folder())
    said = other.ran("compose --method ga --epochs 3 --target 3")
    command = said.split("there is no weak model yet; training it as by: ")[1].splitlines()[0]
    assert done.hashes(done.weak(3)) == other.hashes(other.weak(3))
    shutil.rmtree(other.weak(3))
    words = shlex.split(command)
    assert words[:2] == ["python", "src/eval.py"]
    assert launch("eval", [*words[2:], "--device", "cpu"]).status == 0
    assert done.hashes(done.weak(3)) == other.hashes(other.weak(3))


def test_every_figure_is_that_of_the_plain_definition(done):
    strong = restored(done.folder("pretrain") / "weights.safetensors")
    content = (done.folder("modularize-ga") / "modules.safetensors").read_bytes()
    modules = Modules.from_bytes(content, Path("m"))
    val = split(sources.load("digits_5", Path(), 2021), 2021, LIMIT).val
    found = table(done)
    for target in range(5):
        member = modules.member(strong, torch.rand(2, 3, 32, 32), target)
        weak = restored(done.weak(target) / "weights.safetensors")
        test = split(sources.load(f"digits-mix:{target}", Path(), 2021), 2021, LIMIT).test
        pixels, labels = views.to_float(test.pixels), test.labels.tolist()
        with torch.no_grad():
            own = member(views.to_float(val.pixels[val.labels == target])).double().numpy()
            logits, scores = weak(pixels), member(pixels).double().tolist()
        probabilities = logits.softmax(1).double().tolist()
        low, high = np.percentile(own, [25, 75])
        ends = {
            "min_max": (own.min(), own.max()), "percentile": tuple(np.percentile(own, [10, 90])),
            "outlier": (low - 1.5 * (high - low), high + 1.5 * (high - low)),
            "norm": (own.mean(), own.mean() + own.std()),
        }  # fmt: skip
        for join in ("weak model alone", *ends):
            predicted = []
            for row, own_row, score in zip(probabilities, logits.tolist(), scores, strict=True):
                if join == "weak model alone":
                    predicted.append(own_row.index(max(own_row)))
                    continue
                start, end = ends[join]
                answer = [*row[:-1], (score - start) / (end - start)]
                predicted.append(answer.index(max(answer)))
            pairs = list(zip(predicted, labels, strict=True))
            tp = sum(pair == (4, 4) for pair in pairs)
            fp = sum(p == 4 and t != 4 for p, t in pairs)
            fn = sum(p != 4 and t == 4 for p, t in pairs)
            precision = tp / (tp + fp) if tp + fp else 0
            recall = tp / (tp + fn) if tp + fn else 0
            want = {
                "precision": precision, "recall": recall,
                "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
                "others_accuracy": np.mean([p == t for p, t in pairs if t != 4]),
            }  # fmt: skip
            assert found.loc[str(target), join].to_dict() == pytest.approx(
                {k: 100 * v for k, v in want.items()}, rel=1e-4
            )
        ranges = json.loads((done.folder() / "ranges.json").read_text())[str(target)]
        assert ranges["images"] == len(own)
        assert {k: (v["low"], v["high"]) for k, v in ranges["ranges"].items()} == {
            k: pytest.approx(v, rel=1e-5) for k, v in ends.items()
        }  # fmt: skip


def test_ranges_are_made_of_the_strong_model_s_own_val_images(fresh, monkeypatch):
    """The reference splits after choosing the class, so that most of these images trained the network (fault 1)."""
    seen, outputs = [], joining._WeakModelAndModule.outputs

    def noted(pair, model, images, label):
        if label == "scores of val":
            seen.append(images)
        return outputs(pair, model, images, label)

    monkeypatch.setattr(joining._WeakModelAndModule, "outputs", noted)
    fresh.ran(LINE)
    parts = split(sources.load("digits_5", Path(), 2021), 2021, LIMIT)
    stored = [pixels.numpy().tobytes() for pixels in parts.val.pixels]
    trained = {pixels.numpy().tobytes() for pixels in parts.train.pixels}
    for target, images in enumerate(seen):
        assert images.labels.unique().tolist() == [target]
        found = [pixels.numpy().tobytes() for pixels in images.pixels]
        assert found == [each for each, label in zip(stored, parts.val.labels, strict=True) if label == target]
        assert not set(found) & trained


def test_other_joins_are_reported_beside_min_max_and_the_mean_is_over_classes(done):
    found = table(done)
    assert list(dict.fromkeys(found.index.get_level_values("join"))) == ["weak model alone", *JOINS]
    for join in ("weak model alone", *JOINS):
        by_class = found.loc[[str(target) for target in range(5)]].xs(join, level="join")
        pd.testing.assert_series_equal(found.loc["mean", join], by_class.mean(), check_names=False, rtol=1e-5)
    metrics = json.loads((done.folder() / "metrics.json").read_text())
    assert (metrics["join"], metrics["weak"], metrics["fit"]) == ("min_max", "simcnn_svhn_weak", "simple")
    assert metrics["percent"]["mean"]["norm"]["f1"] == pytest.approx(found.loc["mean", "norm"]["f1"], rel=1e-5)


def test_modules_of_a_better_network_correct_an_under_trained_one(fresh):
    place = fresh
    said = place.ran("compose --method ga --weak_epoch 1")
    mean = table(place).loc["mean"]
    assert mean.loc["weak model alone", "f1"] < mean.loc["calibrate", "f1"] - 5
    assert mean.loc["weak model alone", "f1"] < mean.loc["min_max", "f1"] - 5
    lines = said.splitlines()
    row = next(line for line in lines if line.split()[:1] == ["mean"])
    shown = f"{mean.loc['weak model alone', 'f1']:.1f} -> {mean.loc['min_max', 'f1']:.1f}"
    assert shown in " ".join(row.split())
    assert any(line.split()[:1] == ["calibrate"] for line in lines), "means by join"


def test_modules_with_heads_answer_directly_by_default(fresh):
    fresh.ran(f"compose --target 2 {WEAK}")
    found = table(fresh, "compose-grad-simple-2")
    assert list(dict.fromkeys(found.index.get_level_values("join"))) == ["weak model alone", "direct", *JOINS]
    assert json.loads((fresh.folder("compose-grad-simple-2") / "metrics.json").read_text())["join"] == "direct"
    strong = restored(fresh.folder("pretrain") / "weights.safetensors")
    content = (fresh.folder("modularize-grad") / "modules.safetensors").read_bytes()
    member = Modules.from_bytes(content, Path("m")).member(strong, torch.rand(2, 3, 32, 32), 2)
    weak = restored(fresh.weak(2) / "weights.safetensors")
    test = split(sources.load("digits-mix:2", Path(), 2021), 2021, LIMIT).test
    with torch.no_grad():
        pixels = views.to_float(test.pixels)
        answer = torch.cat([weak(pixels).softmax(1)[:, :4], member(pixels).unsqueeze(1)], 1).argmax(1)
    right = (answer == test.labels)[test.labels != 4].double().mean().item()
    assert found.loc["2", "direct"]["others_accuracy"] == pytest.approx(100 * right, rel=1e-4)


def test_joins_and_the_class_are_in_the_folder_s_name_and_the_first_join_is_shown(fresh):
    said = fresh.ran(f"{LINE} --target 4 --join percentile:5,95 min_max")
    name = "compose-ga-simple-4-percentile5-95-min_max"
    assert {path.name for path in fresh.folder(name).iterdir()} == FILES
    found = table(fresh, name)
    assert found.loc["4"].index.tolist() == ["weak model alone", "percentile:5,95", "min_max"]
    assert "join: percentile:5,95;" in said
    ranges = json.loads((fresh.folder(name) / "ranges.json").read_text())["4"]["ranges"]
    assert list(ranges) == ["min_max", "percentile", "outlier", "norm", "percentile:5,95"], (
        "all modes, whatever is asked"
    )


def test_over_and_under_fitted_models_come_from_one_training(fresh):
    line = "compose --method ga --target 1 --weak simcnn_svhn_weak --weak_epoch 4"
    shutil.rmtree(fresh.weak(1))
    said = fresh.ran(f"{line} --fit underfitted")
    assert "--recipe poorfit" in said
    assert "pretrain, epoch 4" in said
    said = fresh.ran(f"{line} --fit overfitted")
    assert "pretrain, epoch" not in said
    inputs = {
        fit: json.loads((fresh.folder(f"compose-ga-{fit}-simcnn_svhn_weak-1") / "run.json").read_text())["inputs"]
        for fit in ("underfitted", "overfitted")
    }
    weak = fresh.weak(1).relative_to(fresh.output)
    assert f"{weak}/weights-underfitted.safetensors" in inputs["underfitted"]
    assert f"{weak}/weights.safetensors" not in inputs["underfitted"]
    assert f"{weak}/weights.safetensors" in inputs["overfitted"]


def test_the_published_weak_networks_are_chosen_by_family_data_and_fit():
    class Options:
        weak, fit, model, dataset = None, "simple", "simcnn", "cifar10"

    def chosen(model: str, dataset: str, fit: str) -> str:
        options = Options()
        options.model, options.dataset, options.fit = model, dataset, fit
        return published_weak_network(options.model, options.dataset, options.fit)

    assert chosen("simcnn", "cifar10", "simple") == "simcnn_weak"
    assert chosen("rescnn", "cifar10", "simple") == "rescnn_weak"
    assert chosen("rescnn_x0_25", "svhn_5", "simple") == "rescnn_svhn_weak"
    assert chosen("simcnn", "svhn", "simple") == "simcnn_svhn_weak"
    for fit in ("overfitted", "underfitted"):
        assert chosen("rescnn", "svhn_5", fit) == "rescnn_poorfit"
        assert chosen("simcnn", "cifar10", fit) == "simcnn_poorfit"


# --- resumption


def test_interrupted_between_classes_it_goes_on_to_the_same_bytes(fresh, done, monkeypatch):
    compared, compare, stop = [], joining.compare_joins, 2

    def counted(weak, modules, strong, target, *given, **how):
        if len(compared) == stop:
            raise KeyboardInterrupt
        compared.append(target)
        return compare(weak, modules, strong, target, *given, **how)

    monkeypatch.setattr(joining, "compare_joins", counted)
    assert fresh.run(LINE).status == 130
    assert not fresh.folder().exists()
    assert fresh.runs().left_over(f"compose-ga-simple-limit{LIMIT}") == {"checkpoint.pt"}
    stop = None
    fresh.ran(f"{LINE} -r")
    assert compared == [0, 1, 2, 3, 4], "each once"
    assert fresh.hashes(fresh.folder()) == done.hashes(done.folder())
    assert "finished already" in fresh.ran(f"{LINE} -r")
    assert len(compared) == 5


def test_a_weak_model_that_was_made_anew_is_compared_anew(fresh, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert fresh.run(LINE).status == 130
    compared, compare = [], joining.compare_joins
    monkeypatch.setattr(
        joining, "compare_joins", lambda *given, **how: (compared.append(given[3]), compare(*given, **how))[1]
    )
    biases = [name for name in safetensors.torch.load_file(fresh.weak(3) / "weights.safetensors") if "bias" in name]
    fresh.runs("digits-mix-3").overwrite_base(f"pretrain-limit{LIMIT}", biases[-1])
    assert fresh.run(f"{LINE} -r").status == 130
    assert compared == [3]


def test_an_interrupted_weak_training_goes_on(fresh, done, monkeypatch):
    shutil.rmtree(fresh.weak(4))
    left, train_epoch = [2], training.train_epoch

    def count_down(*given, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train_epoch(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", count_down)
        assert fresh.run(LINE).status == 130
    assert "resumed after epoch 2" in fresh.ran(f"{LINE} -r")
    assert fresh.hashes(fresh.weak(4)) == done.hashes(done.weak(4))
    assert fresh.hashes(fresh.folder()) == done.hashes(done.folder())


# --- mistakes


def refused(place: Place, line: str) -> str:
    result = place.run(line)
    assert result.status == 2, result
    assert result.err.count("\n") == 1
    return result.err.removeprefix("error: ").rstrip("\n")


def test_what_cannot_be_done_is_one_line(fresh):
    said = refused(fresh, "compose --method ga --target 7")
    assert said == "--target 7: choose all, or of 0 0, 1 1, 2 2, 3 3, 4 4"
    said = refused(fresh, "compose --method ga --join minmax percentile:9,1 --weak_epoch 0")
    assert said.startswith("--weak_epoch 0: ")
    assert "; --join minmax: choose from min_max, " in said
    assert "; --join percentile:9,1: give two percentiles" in said
    assert "needs modules with heads" in refused(fresh, "compose --method ga --join direct")
    assert "give each once" in refused(fresh, "compose --join norm norm")
    assert "--weak: there is no network simcnn_week in the zoo" in refused(fresh, "compose --weak simcnn_week")
    assert refused(fresh, "compose -d digits-mix:3") == (
        "digits-mix:3: there is no mix for weak models of it; use cifar10, svhn, svhn_5, digits, digits_5"
    )


@pytest.mark.parametrize(
    ("line", "folder", "told"),
    [
        ("compose --method ga", "modularize-ga", "--method ga"),
        ("compose", "modularize-grad", ""),
        ("compose --no-head", "modularize-grad-no-head", "--no_head"),
    ],
)
def test_missing_modules_are_named_with_the_command_that_makes_them(fresh, line, folder, told):
    shutil.rmtree(fresh.folder(folder), ignore_errors=True)
    path = fresh.folder(folder) / "modules.safetensors"
    command = f"python src/modularize.py -m simcnn_svhn_weak -d digits_5 {told}".rstrip()
    assert refused(fresh, line) == (
        f"{path} is missing; make it with: {command} --limit {LIMIT} --output_dir {fresh.output}"
    )


def test_modules_of_another_network_are_refused(fresh):
    shutil.rmtree(fresh.folder("pretrain"))
    fresh.ran("eval --recipe strong -e 1")
    said = refused(fresh, "compose --method ga")
    assert "modularize-ga" in said
    assert "python src/modularize.py" in said


def test_a_weak_model_of_another_recipe_stays_and_a_missing_state_of_the_right_one_is_named(fresh):
    others, before = fresh.weak(2), fresh.hashes(fresh.weak(2))
    line = "compose --method ga --target 2 --fit underfitted --weak simcnn_svhn_weak --weak_epoch 2"
    fresh.ran(line)
    assert fresh.hashes(others) == before
    (poor,) = [path for path in others.parent.iterdir() if path != others]
    (poor / "weights-underfitted.safetensors").unlink()
    said = refused(fresh, line)
    assert said.startswith(f"{poor / 'weights-underfitted.safetensors'} is missing; make it with: ")
    assert "--recipe poorfit" in said
    assert said.endswith(" -e 2")
    assert fresh.hashes(others) == before


@pytest.mark.parametrize("search", ["--no_head --scale_scores --budget 1", "--budget 6"])
def test_modules_of_a_tuned_network_bring_it_along(done, tmp_path, search):
    place = done.copy(tmp_path / "output")
    place.ran(f"modularize {search} --sensitivity_images 5 --tune_epochs 2 --tune_lr 0.01")
    (folder,) = [path.parent for path in place.runs().root.glob("modularize-grad*/tuning.csv")]
    table, metrics = pd.read_csv(folder / "tuning.csv"), json.loads((folder / "metrics.json").read_text())
    assert table["epoch"].tolist() == [0, 1, 2]
    split_network = json.loads((place.folder("pretrain") / "metrics.json").read_text())["accuracy_percent"]["clean"]
    assert metrics["split_network_accuracy_percent"] == pytest.approx(split_network)
    weights = folder / "weights.safetensors"
    modules = Modules.from_bytes((folder / "modules.safetensors").read_bytes(), folder)
    assert modules.base == state_digest(restored(weights).state_dict())
    assert modules.base != state_digest(restored(place.folder("pretrain") / "weights.safetensors").state_dict())
    head = "--no_head" if "--no_head" in search else ""
    place.ran(f"compose {head} {WEAK} --target 1 --modules {folder / 'modules.safetensors'}")
    (left,) = place.runs().root.glob("compose-grad*-simple-1*")
    inputs = json.loads((left / "run.json").read_text())["inputs"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in inputs.values()
    if not head:
        place.ran(f"compose --assemble {folder}")
        (left,) = place.runs().root.glob("compose-assembled*")
        accuracies = json.loads((left / "metrics.json").read_text())["accuracy_percent"]
        assert accuracies["best base model"] == pytest.approx(metrics["strong_accuracy_percent"])
    alone = tmp_path / "modules.safetensors"
    alone.write_bytes((folder / "modules.safetensors").read_bytes())
    without = place.run(f"compose {head} {WEAK} --target 1 --modules {alone}")
    assert (without.status, without.err.count("\n")) == (2, 1), without.err
    assert "no network of these modules lies beside it" in without.err
    weights.write_bytes(b"damaged")
    broken = place.run(f"compose {head} {WEAK} --target 1 --modules {folder / 'modules.safetensors'}")
    assert (broken.status, broken.err.count("\n")) == (2, 1), broken.err
