"""pretrain --recipe: what each preset sets, what the command line overrides, and the two states of the poor fit."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor

from deeppatch import training
from deeppatch.artifacts import state_digest
from deeppatch.cli import parsing
from deeppatch.data import sources, views
from deeppatch.data.splits import split
from deeppatch.errors import UserError
from deeppatch.pretraining import classifier
from deeppatch.pretraining.halfway import Halfway
from deeppatch.training import History
from deeppatch.zoo.entries import IMAGENET_STATS

# the published table: learning rate, momentum, weight decay, epochs, batch
TABLE = {"strong": (0.01, 0.9, 1e-4, 200, 128), "weak": (0.01, 0.9, 1e-4, 100, 128), "poorfit": (0.01, 0, 0, 200, 128)}
TABLE["hybrid"] = (0.1, 0.9, 5e-4, 200, 64)
NAMES = ("lr", "momentum", "weight_decay", "max_epoch", "batch_size")


def parse(line: str):
    return parsing.parse(
        importlib.import_module("deeppatch.cli.pretrain.command"), line.split(), "python src/{script}.py"
    )


@pytest.fixture
def runs(tmp_path, runs_in):
    """What pretrain leaves on the digits."""
    return runs_in(tmp_path / "output" / "digits_5" / "simcnn_svhn_weak")


@pytest.fixture
def digits(tmp_path, launch, runs):
    """Run pretrain on a few digits with a tiny network; returns its folder and what it said."""

    def ran(line: str = "", status: int = 0) -> tuple[Path, str]:
        fixed = "-m simcnn_svhn_weak -d digits_5 --limit 40 --device cpu"
        result = launch("eval", [*fixed.split(), "--output_dir", str(tmp_path / "output"), *line.split()])
        assert result.status == status, result.err
        return runs.at("pretrain-limit40"), result.out + result.err

    return ran


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_the_published_values(name):
    options = parse(f"--recipe {name} -m simcnn -d cifar10")
    assert tuple(getattr(options, each) for each in NAMES) == TABLE[name]
    stats = (None, None) if name == "hybrid" else tuple(map(list, IMAGENET_STATS))  # with --bias, the protocol's own
    assert (options.mean, options.std) == stats
    assert options.train, "also where weights are published"


def test_the_default_recipe_is_the_command_line_s_own():
    one, other = vars(parse("--recipe default")), vars(parse(""))
    assert {**one, "command": ""} == {**other, "command": ""}


def test_what_is_given_overrides_a_recipe_even_where_it_is_the_usual_default():
    options = parse(
        "--recipe poorfit -b 256 -e 50 --lr 0.01 --momentum 0.9 --weight_decay 5e-4 --mean 0 0 0 --std 1 1 1"
    )
    assert [getattr(options, name) for name in NAMES] == [0.01, 0.9, 5e-4, 50, 256]
    assert (options.mean, options.std) == ([0.0] * 3, [1.0] * 3)
    assert parse("-e 3 --recipe weak").max_epoch == 3
    assert parse("--recipe weak").max_epoch == 100, "nothing stays from the parse before"


def test_contradictions_with_a_recipe_are_named():
    with pytest.raises(UserError, match="^--recipe and --weights exclude each other"):
        parse("--recipe strong --weights w.pt")
    with pytest.raises(UserError, match="leave out --train, --recipe,"):
        parse("--recipe strong --state corrected")
    with pytest.raises(UserError, match="strong"):
        parse("--recipe feeble")


@pytest.mark.parametrize(
    ("recipe", "epochs", "drops"),
    [
        ("default", 10, None),
        ("strong", 200, [60, 120]),
        ("strong", 10, [3, 6]),
        ("weak", 10, []),
        ("poorfit", 10, []),
        ("hybrid", 200, [101, 151]),
    ],
)
def test_the_learning_rate_falls_as_the_recipe_says(digits, monkeypatch, recipe, epochs, drops):
    asked = {}

    def stop(*_parameters, **options):
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "sgd", stop)
    digits(f"--recipe {recipe} -e {epochs} -b 16", status=130)
    batches = 3  # of 40 images
    assert asked["milestones"] == (None if drops is None else [batches * epoch for epoch in drops])
    assert asked["steps"] == batches * epochs


@pytest.mark.parametrize(
    ("recipe", "cropped"), [("default", True), ("strong", True), ("weak", True), ("poorfit", False)]
)
def test_training_images_are_augmented_by_the_recipe_and_val_images_never(digits, monkeypatch, recipe, cropped):
    """The reference's validation shares the training transform, and averages the batches' accuracies (faults 3, 4)."""
    load, fit, seen = sources.load, classifier.fit, []
    monkeypatch.setattr(
        sources, "load", lambda *given: sources.Source(**{**vars(load(*given)), "augment": True, "mirror": False})
    )
    val = split(sources.load("digits_5", Path(), 2021), 2021, 40).val

    def watched(model, epochs, *given, **options):
        seen.extend(epochs)
        return fit(model, epochs, *given, **options)

    def half_right(_model, view, **_options) -> Tensor:
        pixels = torch.cat([pixels for pixels, _labels in view])
        assert torch.equal(pixels, views.to_float(val.pixels)), "as they are, in order"
        wrong = view.labels.clone()
        wrong[32:] += 1  # the last of two batches, of 8
        return wrong

    monkeypatch.setattr(classifier, "fit", watched)
    monkeypatch.setattr(training, "predict", half_right)
    folder, _said = digits(f"--recipe {recipe} -e 2 -b 32")
    assert [(epoch.augment, epoch.mirror) for epoch in seen] == [(cropped, False)] * 2
    assert pd.read_csv(folder / "history.csv").val_accuracy_percent.tolist() == [80, 80]


# --- the two states of the poor fit


@pytest.fixture
def states(monkeypatch) -> list[str]:
    """The digest of the state after each epoch."""
    seen: list[str] = []
    keep = Halfway.keep

    def noted(self, model, history):
        seen.append(state_digest(model.state_dict()))
        keep(self, model, history)

    monkeypatch.setattr(Halfway, "keep", noted)
    return seen


POORFIT = "--recipe poorfit -e 9 -b 8 --lr 0.03"


def test_the_poor_fit_leaves_its_best_epoch_and_the_one_at_half_of_it(digits, states):
    folder, _said = digits(POORFIT)
    history = pd.read_csv(folder / "history.csv")
    best = int(history.val_accuracy_percent.idxmax())  # from 0, as published
    assert best > 2
    assert len(set(states)) == 9
    left = {
        name: safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("weights", "weights-underfitted")
    }
    assert {name: state_digest(state) for name, state in left.items()} == {
        "weights": states[best], "weights-underfitted": states[best // 2]
    }  # fmt: skip
    assert set(hashes(folder)) == {
        "weights.safetensors", "weights-underfitted.safetensors", "history.csv", "metrics.json", "metrics.csv"
    }  # fmt: skip
    metrics = (folder / "metrics.json").read_text()
    assert f'"underfitted_epoch": {best // 2 + 1}' in metrics
    assert f"trained here by the recipe poorfit, 9 epochs, best {best + 1}" in metrics


@pytest.mark.parametrize("epochs", [1, 4, 8])
def test_a_poor_fit_that_was_interrupted_ends_with_the_same_bytes(digits, runs, monkeypatch, epochs):
    folder, _said = digits(POORFIT)
    whole, train_epoch, left = hashes(folder), training.train_epoch, [epochs]
    shutil.rmtree(folder)

    def count_down(*given, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train_epoch(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", count_down)
        digits(POORFIT, status=130)
    assert (runs.unfinished("pretrain-limit40") / "epochs").is_dir()
    _folder, said = digits(f"{POORFIT} -r")
    assert f"resumed after epoch {epochs}" in said
    assert hashes(folder) == whole


def test_without_r_the_epochs_of_another_run_are_not_taken(digits, states):
    folder, _said = digits(POORFIT)
    whole = hashes(folder)
    epochs = folder.with_name(f".{folder.name}.unfinished") / "epochs"
    epochs.mkdir(parents=True)
    for epoch in range(12):
        (epochs / f"{epoch:03}.safetensors").write_bytes(b"another run's")
    digits(POORFIT)
    assert hashes(folder) == whole


@pytest.mark.parametrize(
    "accuracies",
    [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.9] + 6 * [0.1], [0.1, 0.5, 0.5, 0.4, 0.6, 0.2, 0.6], [0.3]],
)
def test_only_what_may_yet_be_asked_for_is_kept(tmp_path, tiny, accuracies):
    """The oracle: an epoch may be asked for if some course of the epochs to come makes it half of the best."""
    halfway = Halfway(tmp_path / "epochs", len(accuracies))
    written = []
    for done in range(1, len(accuracies) + 1):
        with torch.no_grad():
            tiny.network.fc.bias.fill_(done)
        written.append(state_digest(tiny.state_dict()))
        halfway.keep(tiny, History([0.0] * done, accuracies[:done]))
        best = accuracies[:done].index(max(accuracies[:done]))
        wanted = {best // 2} | {later // 2 for later in range(done, len(accuracies)) if later // 2 < done}
        assert {int(path.stem) for path in halfway.folder.iterdir()} == wanted
    best = accuracies.index(max(accuracies))
    state = safetensors.torch.load(halfway.state(History([0.0] * len(accuracies), accuracies)))
    assert state_digest(state) == written[best // 2]
    halfway.remove()
    assert list(tmp_path.iterdir()) == []
    halfway.remove()


def test_no_more_than_a_quarter_of_the_epochs_is_kept_at_once(tmp_path, tiny):
    halfway, most = Halfway(tmp_path / "epochs", 40), 0
    for done in range(1, 41):
        halfway.keep(tiny, History([0.0] * done, [0.5] * done))
        most = max(most, len(list(halfway.folder.iterdir())))
    assert 10 <= most <= 11
