from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from deeppatch.data import sources, views
from deeppatch.data.scaling import Sizing
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS, ENTRIES, Entry

HALF = "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
# far from every pair of common constants, and from those that the tests train with
WRONG = "--mean 3 -2 4 --std 0.05 0.05 0.05"


@pytest.fixture(scope="module")
def trained(chain, tmp_path_factory):
    """The bare state dict of a network trained with mean and standard deviation 0.5, and the bench it comes from."""
    bench = chain.copy(tmp_path_factory.mktemp("trained") / "output", "none")
    bench.ran(f"eval --train -e 12 --lr 0.1 {HALF}")
    whole = safetensors.torch.load_file(bench.at("pretrain") / "weights.safetensors")
    assert torch.equal(whole["normalize.mean"].flatten(), torch.full((3,), 0.5))
    return {key.removeprefix("network."): value for key, value in whole.items() if key.startswith("network.")}, bench


@pytest.fixture
def bare(trained, tmp_path) -> Path:
    """That state dict as a safetensors file without normalisation constants."""
    safetensors.torch.save_file(trained[0], tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def left(bench) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(bench.at("pretrain") / "weights.safetensors")


def constants(bench) -> list[list[float]]:
    state = left(bench)
    return [state[f"normalize.{key}"].flatten().tolist() for key in ("mean", "std")]


@pytest.mark.parametrize("kind", ["safetensors", "plain.pt", "nested.th", "whole"])
def test_a_weights_file_is_taken_as_it_is(trained, empty, tmp_path, kind):
    state, origin = trained
    path = tmp_path / f"given.{kind.split('.')[-1]}"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "whole":
        path = origin.at("pretrain") / "weights.safetensors"
    elif kind == "plain.pt":
        torch.save(state, path)
    else:  # as a data-parallel training of 2017 saved it: no batch counters, the head called linear
        old = {f"module.{key}".replace("module.fc", "module.linear"): value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": {k: v for k, v in old.items() if "num_batches" not in k}}, path)
    given = "" if kind == "whole" else HALF
    said = empty.ran(f"eval --weights {path} {given}").out
    assert f"[info] weights: {path} (given)" in said
    found = left(empty)
    trainable = [key for key in state if "num_batches" not in key]
    assert all(torch.equal(found[f"network.{key}"], state[key]) for key in trainable)
    assert constants(empty) == [[0.5] * 3, [0.5] * 3]
    mine, its = empty.json("pretrain/metrics.json"), origin.json("pretrain/metrics.json")
    assert mine["accuracy_percent"] == its["accuracy_percent"]
    assert mine["weights"] == f"{path.name}, given"
    assert mine["normalisation_doctor"] is None
    assert empty.files("pretrain") == {"run.json", "weights.safetensors", "metrics.json", "metrics.csv"}
    record = empty.json("pretrain/run.json")
    assert record["inputs"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert record["settings"]["weights"] == str(path)


def test_constants_come_from_the_command_line_first(trained, empty):
    whole = trained[1].at("pretrain") / "weights.safetensors"
    said = empty.ran(f"eval --weights {whole} --mean 0.1 0.2 0.3 --std 0.4 0.5 0.6").out
    assert "[info] normalisation: mean 0.1 0.2 0.3, std 0.4 0.5 0.6 (as given)" in said
    assert constants(empty) == [pytest.approx([0.1, 0.2, 0.3]), pytest.approx([0.4, 0.5, 0.6])]


def test_constants_come_from_the_weights_file_next(trained, empty):
    whole = trained[1].at("pretrain") / "weights.safetensors"
    said = empty.ran(f"eval --weights {whole}").out
    assert "[info] normalisation: mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (from the weights file)" in said


def test_constants_of_the_zoo_come_before_those_of_the_images(bare, empty, monkeypatch):
    published(monkeypatch, empty, 1.0, (0.25, 0.5, 0.75), (0.5, 0.25, 0.125))
    said = empty.ran(f"eval --weights {bare}").out
    assert "[info] normalisation: mean 0.25 0.5 0.75, std 0.5 0.25 0.125 (of the zoo)" in said
    assert constants(empty) == [[0.25, 0.5, 0.75], [0.5, 0.25, 0.125]]


def test_constants_of_the_training_images_come_last_and_with_a_word_of_caution(bare, empty):
    said = empty.ran(f"eval --weights {bare}").out
    line = next(line for line in said.splitlines() if line.startswith("[info] normalisation: "))
    assert line.endswith("(of the training images; give --mean and --std if the weights were made with others)")
    images = sources.load(f"folder:{empty.data}", Path("data"), 2021, Sizing(32)).train
    mean, std = constants(empty)
    pixels = views.to_float(images.pixels)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=0.02), "24 of the 30 images are the train split"
    assert std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=0.02)


def test_the_accuracy_is_that_of_the_network_on_normalised_test_images(bare, empty):
    empty.ran(f"eval --weights {bare} --mean 0.4 0.5 0.6 --std 0.3 0.4 0.5")
    network = ARCHITECTURES["resnet8"](3)
    network.load_state_dict(safetensors.torch.load_file(bare))
    model = Classifier(network, [0.4, 0.5, 0.6], [0.3, 0.4, 0.5]).eval()
    images = sources.load(f"folder:{empty.data}", Path("data"), 2021, Sizing(32)).test
    with torch.inference_mode():
        right = model(views.to_float(images.pixels)).argmax(1) == images.labels
    measured = empty.json("pretrain/metrics.json")["accuracy_percent"]["clean"]
    assert measured == pytest.approx(100 * right.double().mean().item())


# which weights


def published(monkeypatch, bench, top1: float, mean=(0.5,) * 3, std=(0.5,) * 3, file: Path | None = None) -> None:
    """Let the zoo publish weights for the bench's images; a download of them fails unless there is a file."""
    entry = Entry("https://nowhere.invalid/net-00000000.pt", top1, mean, std)
    monkeypatch.setitem(ENTRIES, (f"folder:{bench.data}", "resnet8"), entry)

    def fetch(url: str) -> Path:
        assert url == entry.url
        assert file is not None, "nothing is to be downloaded here"
        return file

    monkeypatch.setattr(weights, "fetch", fetch)


def test_a_network_is_trained_where_nothing_is_published_and_that_is_said(empty):
    said = empty.ran("eval -e 2").out.splitlines()
    why = f"no weights are published for resnet8 on folder:{empty.data}"
    assert said[0] == f"[info] weights: training from scratch ({why})"
    assert len(pd.read_csv(empty.at("pretrain") / "history.csv")) == 2
    assert empty.json("pretrain/metrics.json")["weights"].startswith("trained here, 2 epochs, best ")
    assert any(line.startswith("[info] pretrain, epoch 2: loss ") for line in said)


def test_train_trains_even_where_weights_are_published(empty, monkeypatch):
    published(monkeypatch, empty, 99.0)
    said = empty.ran("eval --train -e 1").out
    assert said.startswith("[info] weights: training from scratch (--train)\n")
    assert "(of the zoo)" in said
    assert empty.json("pretrain/metrics.json")["normalisation_doctor"] is None, "it is not the published network"


def test_published_weights_are_taken_where_there_are_some(empty, monkeypatch, bare):
    published(monkeypatch, empty, 61.5, file=bare)
    said = empty.ran("eval").out
    assert f"[info] weights: {bare} (published, 61.5 % on test)" in said
    assert "training" not in said
    metrics = empty.json("pretrain/metrics.json")
    assert metrics["weights"] == f"{bare.name}, published, 61.5 % on test"
    assert metrics["normalisation_doctor"] is None
    assert "history.csv" not in empty.files("pretrain")
    assert "finished already" in empty.ran("eval -r").out
    bare.write_bytes(safetensors.torch.save(safetensors.torch.load(bare.read_bytes()), {"made": "anew"}))
    assert "finished already" not in empty.ran("eval -r").out, "the weights file is another"


def test_training_chooses_the_first_best_epoch_by_clean_val_accuracy(empty):
    empty.ran("eval --train -e 8 --lr 0.1")
    history = pd.read_csv(empty.at("pretrain") / "history.csv")
    best = history.val_accuracy_percent.idxmax() + 1
    assert best < 8, "the last epoch is not the best one here"
    assert empty.json("pretrain/metrics.json")["weights"] == f"trained here, 8 epochs, best {best}"
    state = left(empty)
    steps = {value.item() for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert steps == {2 * best}, "the saved state is that after the best epoch, of two batches each"


def test_augmentation_and_another_rate_make_another_network(empty):
    for options in ("--lr 0.1", "--lr 0.2", "--momentum 0", "--weight_decay 0", "--seed 7"):
        empty.ran(f"eval --train -e 2 {options} --limit 9")
    assert len({path.read_bytes() for path in empty.root.glob("pretrain-*/weights.safetensors")}) == 5


# the normalisation doctor


def write_shades(folder: Path) -> Path:
    """Write an image folder whose classes differ in brightness alone, so that constants matter."""
    draw = np.random.default_rng(1)
    for part, count in (("train", 12), ("test", 6)):
        for label in range(5):
            place = folder / part / f"shade{label}"
            place.mkdir(parents=True)
            for number in range(count):
                image = np.clip(0.2 + 0.15 * label + 0.02 * draw.standard_normal((32, 32, 3)), 0, 1)
                Image.fromarray((255 * image).astype(np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("right", ["half", "none"])
def test_the_doctor_names_the_constants_that_were_right(chain, tmp_path, monkeypatch, right):
    mean, std = (" ".join(f"{value:g}" for value in triple) for triple in COMMON_STATS[right])
    given = f"--mean {mean} --std {std}"
    bench = type(chain)(write_shades(tmp_path / "shades"), tmp_path / "output")
    bench.ran(f"eval --train -e 15 --lr 0.1 {given}")
    top1 = bench.json("pretrain/metrics.json")["accuracy_percent"]["clean"]
    assert top1 > 90
    path = tmp_path / "bare.safetensors"
    state = {key.removeprefix("network."): value for key, value in left(bench).items() if key.startswith("network.")}
    safetensors.torch.save_file(state, path)

    shutil.rmtree(bench.at("pretrain"))
    published(monkeypatch, bench, top1)
    said = bench.ran(f"eval --weights {path} {WRONG}").out
    doctor = bench.json("pretrain/metrics.json")["normalisation_doctor"]
    assert (doctor["best"], doctor["advice"], doctor["published_percent"]) == (right, given, top1)
    assert doctor["val"].keys() == COMMON_STATS.keys()
    assert doctor["val"][right]["accuracy_percent"] > 90
    losses = {name: tried["cross_entropy"] for name, tried in doctor["val"].items()}
    assert min(losses, key=losses.get) == right
    assert f"% is far below the published {top1:.2f} %; trying other constants on val" in said
    assert f"[info] doctor: best on val: {right}; {given}" in said
    assert all(f"{name}: mean " in said for name in COMMON_STATS)
    assert constants(bench)[1] == pytest.approx([0.05] * 3), "it advises, and changes nothing"

    shutil.rmtree(bench.at("pretrain"))
    cured = bench.ran(f"eval --weights {path} {doctor['advice']}").out
    assert "[info] doctor" not in cured
    metrics = bench.json("pretrain/metrics.json")
    assert metrics["normalisation_doctor"] is None
    assert metrics["accuracy_percent"]["clean"] == top1


def test_the_doctor_says_when_no_constants_explain_it(empty, monkeypatch, tmp_path):
    torch.manual_seed(0)
    torch.save(ARCHITECTURES["resnet8"](3).state_dict(), tmp_path / "untrained.pt")
    published(monkeypatch, empty, 99.9)
    said = empty.ran(f"eval --weights {tmp_path}/untrained.pt").out
    assert "none of them explains it: check that the weights belong to this network and data set" in said


def test_the_doctor_allows_for_chance_in_a_small_test_set(empty, monkeypatch, tmp_path):
    torch.manual_seed(0)
    torch.save(ARCHITECTURES["resnet8"](3).state_dict(), tmp_path / "untrained.pt")
    line = f"eval --weights {tmp_path}/untrained.pt {HALF}"
    empty.ran(line)
    measured = empty.json("pretrain/metrics.json")["accuracy_percent"]["clean"]
    assert 0 <= measured < 70
    published(monkeypatch, empty, measured + 10)  # of 24 images, three standard errors are over twenty points
    assert "[info] doctor" not in empty.ran(line).out
    published(monkeypatch, empty, 99.9)  # where they are two
    assert "[info] doctor" in empty.ran(line).out
