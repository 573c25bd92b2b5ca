from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models.resnet import BasicBlock, ResNet

from deeppatch.cli.annotate import report
from deeppatch.data import biased_split, sources
from deeppatch.data.label_file import read_labels
from deeppatch.data.pool import Pool
from deeppatch.data.scaling import Sizing
from deeppatch.errors import UserError
from deeppatch.features import Embeddings
from deeppatch.hybrid import encoder_training, given_encoder
from deeppatch.hybrid.budget import affordable
from deeppatch.hybrid.selection import Selection, selection_from_bytes
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import METHODS, Choice
from deeppatch.zoo.entries import PROTOCOL_STATS
from deeppatch.zoo.normalisation import choose_normalisation

FILES = {"selection.safetensors", "selection.json", "selection.csv", "contact.html", "run.json"}
BIASED = "--bias B --views 2 --budget 10%"
END = "budget10pc-views2-biasB"
SMALL_ENCODER = "--features ssl --encoder resnet8 --epochs 2"


@pytest.fixture(scope="module")
def waves_bench(tmp_path_factory, waves, new_bench):
    """180 images in three classes, 40 more without labels, and two models: a biased one and one of the folder's own."""
    place = tmp_path_factory.mktemp("annotate")
    bench = new_bench(waves(place / "waves", train=40, test=20), place / "output")
    spare = waves(place / "spare", train=12, test=2, seed=9)
    for number, file in enumerate(sorted(spare.rglob("*.png"))[:40]):
        target = bench.data / "pool" / f"day{number % 2}" / f"{number:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    bench.ran("eval -e 2 --lr 0.1 --train --bias B")
    bench.ran("eval -e 2 --lr 0.1 --train")
    return bench


def selection_of(bench, folder: str) -> Selection:
    path = bench.at(folder) / "selection.safetensors"
    return selection_from_bytes(path.read_bytes(), path)


def rows_of(bench, folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((bench.at(folder) / "selection.csv").read_text("utf-8-sig"))))


def test_pretrain_leaves_the_split_beside_the_biased_model(waves_bench):
    assert "split.safetensors" in waves_bench.files("pretrain-biasB")
    assert "split.safetensors" not in waves_bench.files("pretrain")
    source = sources.load(f"folder:{waves_bench.data}", waves_bench.data, 2021, Sizing(32))
    path = waves_bench.at("pretrain-biasB") / "split.safetensors"
    parts = biased_split.partition_from_bytes(path.read_bytes(), path)
    again = biased_split.partition(source, "B", 2021)
    assert all(torch.equal(getattr(parts, name), getattr(again, name)) for name in ("train", "val", "test", "pool"))
    assert [len(part) for part in (parts.train, parts.val, parts.test, parts.pool)] == [33, 11, 15, 105]
    assert waves_bench.json("pretrain-biasB/metrics.json")["test_images"] == 15


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_its_folder_whole(waves_bench, method):
    said = waves_bench.ran(f"annotate {BIASED} --method {method}").out
    folder = f"annotate-{method}-{END}"
    assert waves_bench.files(folder) == FILES
    found, told = selection_of(waves_bench, folder), waves_bench.json(f"{folder}/selection.json")
    count = 0 if method == "none" else 10
    assert len(found.bought) == told["labels_bought"] == len(rows_of(waves_bench, folder)) == count
    assert f"{method}: {count} of 10 labels bought" in said
    assert (told["members"], told["unlabelled"]) == (len(found.members), len(found.unlabelled))
    assert told["tau"] == found.facts["tau"]
    assert found.facts["method"] == method
    assert (found.facts["budget"], found.facts["bias"], found.facts["pool"]) == ("10%", "B", 105)
    assert "unknown in the field" in said
    assert set(told["diagnostics"]) > {"note", "failures_in_pool_percent"}


def test_labels_are_those_of_the_pool_and_the_table_names_images_by_place(waves_bench):
    waves_bench.ran(f"annotate {BIASED} --method gini")
    source = sources.load(f"folder:{waves_bench.data}", waves_bench.data, 2021, Sizing(32))
    pool, labels = biased_split.partition(source, "B", 2021).pool, biased_split.combined(source).labels
    found, rows = selection_of(waves_bench, f"annotate-gini-{END}"), rows_of(waves_bench, f"annotate-gini-{END}")
    assert torch.equal(found.labels, labels[pool[found.bought]])
    for row, place, label in zip(rows, found.bought.tolist(), found.labels.tolist(), strict=True):
        assert row == {
            "index": str(pool[place].item()), "reason": "of no clear class", "cluster": "",
            "uncertainty": row["uncertainty"], "label": f"class{label}",
        }  # fmt: skip
        assert 0 <= float(row["uncertainty"]) <= 1


def test_the_same_seed_leaves_the_same_bytes_and_a_finished_run_stays(waves_bench):
    line, folder = f"annotate {BIASED} --method hybrid", f"annotate-hybrid-{END}"
    waves_bench.ran(line)
    before = waves_bench.hashes(folder)
    assert "finished already" in waves_bench.ran(f"{line} -r").out
    waves_bench.ran(line)
    assert waves_bench.hashes(folder) == before


def test_images_without_labels_get_a_table_to_fill_in_and_a_sheet(waves_bench):
    said = waves_bench.ran("annotate --views 2 --budget 6").out
    folder = "annotate-hybrid-budget6-views2"
    assert "pool: 40 images without labels" in said
    assert "unknown in the field" not in said
    assert waves_bench.files(folder) == FILES
    rows = rows_of(waves_bench, folder)
    assert list(rows[0]) == ["file", "reason", "cluster", "uncertainty", "label"]
    assert [row["label"] for row in rows] == [""] * 6
    names = sorted(path.relative_to(waves_bench.data / "pool").as_posix() for path in waves_bench.data.glob("pool/*/*"))
    found = selection_of(waves_bench, folder)
    assert [row["file"] for row in rows] == [names[place] for place in found.bought.tolist()]
    assert found.labels.tolist() == [-1] * 6
    assert waves_bench.json(f"{folder}/selection.json")["diagnostics"] is None
    page = (waves_bench.at(folder) / "contact.html").read_text()
    task = json.loads(re.search('id="task">(.*?)</script>', page)[1])
    assert page.count("data:image/png") == 6
    assert task["names"] == [row["file"] for row in rows]
    assert task["cells"] == [list(row.values()) for row in rows]
    assert task["classes"] == ["class0", "class1", "class2"]
    assert all(len(each) == 3 and each[0][1] >= each[1][1] for each in task["guesses"])
    assert task["facts"][0]["notes"][0].startswith(rows[0]["reason"])
    assert task["command"].startswith("python src/relearn.py ")
    assert " --budget 6 " in task["command"]
    assert task["command"].endswith(" --labels selection.csv")
    assert f"label the images in {waves_bench.at(folder) / 'contact.html'}, which opens in a browser" in said


def filled(bench, folder: str, label: str = "class1") -> bytes:
    path = bench.at(folder) / "selection.csv"
    table = pd.read_csv(path, dtype=str)
    table["label"] = label
    table.to_csv(path, index=False)
    return path.read_bytes()


def test_labels_that_a_person_gave_are_read_and_never_written_over(waves_bench, tmp_path):
    bench = waves_bench.copy(tmp_path / "output", "pretrain")
    line, folder = "annotate --views 2 --budget 6 --method random", "annotate-random-budget6-views2"
    bench.ran(line)
    bench.ran(line)  # an empty table may be made again
    content = filled(bench, folder)
    path = bench.at(folder) / "selection.csv"
    files = [row["file"] for row in rows_of(bench, folder)]
    assert read_labels(content, path, files, ("class0", "class1", "class2")).tolist() == [1] * 6
    for again in (line, f"{line} -r"):
        message = bench.refused(again)
        assert message.startswith(f"{path} holds 6 labels; go on with: python src/relearn.py ")
        assert message.endswith(f" --labels {path} (or move the file away to choose anew)")
    assert path.read_bytes() == content
    path.unlink()
    bench.ran(line)


def test_an_encoder_is_trained_once_and_its_name_is_told(waves_bench, new_bench, tmp_path):
    bench = waves_bench.copy(tmp_path / "output", "pretrain-biasB")
    line = f"annotate {BIASED} {SMALL_ENCODER}"
    folder = "annotate-hybrid-budget10pc-ssl-encoderresnet8-epochs2-views2-biasB"
    first = bench.ran(line).out
    assert "encoder, epoch 2" in first
    (kept,) = [name for name in bench.files() if name.startswith("encoder/")]
    before = bench.hashes(folder)
    again = bench.ran(line).out
    assert "encoder, epoch" not in again
    assert f"inherited {bench.at(kept)}" in again
    assert bench.hashes(folder) == before
    told = bench.json(f"{folder}/selection.json")
    assert told["features"] == "ssl"
    assert told["encoder"]["encoder"] == "resnet8"
    assert told["encoder"]["images"] == 33 + 105, "no val and no test image"
    assert f"{told['encoder']['knn_accuracy_on_val_percent']} % of val images are of their class" in again
    path = bench.at(kept)
    whole = path.read_bytes()
    for damaged in (b"damaged", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        said = bench.ran(line).out
        assert f"{path} is damaged; computing it again" in said
        assert "encoder, epoch 2" in said
        assert bench.hashes(folder) == before
    assert not list((bench.at(folder)).glob("checkpoint*"))


def test_an_encoder_whose_training_was_interrupted_goes_on_to_the_same_bytes(waves_bench, tmp_path, monkeypatch):
    benches = [waves_bench.copy(tmp_path / name, "pretrain-biasB") for name in ("whole", "broken")]
    line = f"annotate {BIASED} {SMALL_ENCODER}"
    benches[0].ran(line)
    with monkeypatch.context() as patch:
        calls = iter([0.5])
        patch.setattr(encoder_training, "neighbours_accuracy", lambda *_given: next(calls))  # stops in the second epoch
        with pytest.raises(StopIteration):
            benches[1].run(line)
    (left,) = benches[1].root.glob(".annotate-*.unfinished")
    assert [path.name for path in left.iterdir()] == ["checkpoint.pt"]
    assert "encoder: resumed after epoch 1" in benches[1].ran(f"{line} -r").out
    assert benches[1].hashes() == benches[0].hashes()


@pytest.mark.parametrize(
    ("truth", "own", "warned"),
    [([1, 1, 1], [0, 1, 0], True), ([0, 1, 0], [0, 1, 0], True), ([0, 0, 1], [0, 1, 1], False),
     ([0, 0, 0], [0, 1, 0], False), ([1], [1], False)],
)  # fmt: skip
def test_spread_labels_that_are_worse_than_the_model_s_own_are_told(truth, own, warned, caplog):
    """The first image is bought and lends its label, 0, to all others."""
    caplog.set_level(logging.INFO, "deeppatch")
    count, logits = len(truth), torch.nn.functional.one_hot(torch.tensor(own), 2).float()
    members = torch.arange(count)
    selection = Selection(
        torch.tensor([0]), torch.tensor([0]), members, torch.zeros_like(members), members[:0], torch.empty(0)
    )
    pool = Pool(torch.empty(count, 3, 1, 1), [], torch.tensor(truth), None, "")
    inputs = SelectionInputs(torch.nn.Identity(), pool.pixels, pool.pixels, seed=0)
    vars(inputs)["embeddings"] = Embeddings(logits, logits)
    found = report.diagnostics(pool, inputs, Choice(selection, [""], torch.tensor([-1]), logits))
    assert found["propagated_labels_correct_percent"] == pytest.approx(100 * truth.count(0) / count, abs=0.01)
    assert ("are wrong more often than the model's own predictions there" in caplog.text) is warned


def test_biased_models_take_the_normalisation_that_is_published_with_the_protocol():
    published = {
        "cifar10": ([0.491373, 0.482353, 0.446667], [0.247059, 0.243529, 0.261569]),
        "svhn": ([0.5] * 3, [0.5] * 3),
        "gtsrb": ([0.3337, 0.3064, 0.3171], [0.2672, 0.2564, 0.2629]),
    }
    assert PROTOCOL_STATS.keys() == published.keys()
    for name, (mean, std) in published.items():
        found = choose_normalisation(protocol=name)
        assert found.mean == pytest.approx(mean, abs=1e-6)
        assert found.std == pytest.approx(std, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--bias B --budget 0", "--budget 0: give at least 1 label"),
        ("--bias B --budget 101%", "--budget 101%: give at least 1 label, at most 100%"),
        ("--bias B --budget=-5", "--budget -5: give a number of labels"),
        ("--bias B --budget lots", "--budget lots: give a number of labels, or a share of the pool as 1%"),
        ("--bias B --views 0", "--views 0: give at least 1"),
        ("--bias B --method gini --features ssl", "--features ssl can only be used with --method coreset, typiclust, "),
        ("-d digits", "-d digits: give --bias to simulate a pool, or folder:PATH with images in PATH/pool"),
        ("--bias B --budget 106", "--budget 106 is 106 of 105 images in the pool; give 1 to 105"),
        ("--bias B --budget 0.5%", "--budget 0.5% is 0 of 105 images in the pool; give 1 to 105"),
    ],
)
def test_a_mistake_is_one_line(waves_bench, options, said):
    assert said in waves_bench.refused(f"annotate {options}")


def test_all_mistakes_are_told_at_once(waves_bench):
    line = waves_bench.refused("annotate --bias B --budget x --views 0 --method mcp --features ssl --encoder_epochs 0")
    assert [part.split()[0] for part in line.split("; ")] == ["--budget", "--views", "--encoder_epochs", "--features"]


def test_pretrain_with_bias_wants_training(waves_bench):
    line = "--bias A: published weights have seen all training images; add --train"
    assert line in waves_bench.refused("eval --bias A")
    assert "--bias" in waves_bench.refused("eval --bias A --state corrected -c finetune")


def test_the_base_that_is_missing_is_made_by_the_command_that_is_told(waves_bench, new_bench, tmp_path):
    bench = new_bench(waves_bench.data, tmp_path / "output")
    line = bench.refused(f"annotate {BIASED}")
    assert line.endswith(f"-d folder:{bench.data} --train --bias B --output_dir {bench.output}")
    assert "pretrain-biasB/weights.safetensors is missing; make it with: python src/eval.py -m resnet8" in line


def test_a_model_of_another_cut_is_refused_for_it_may_have_seen_the_pool(waves_bench, tmp_path):
    bench = waves_bench.copy(tmp_path / "output", "pretrain-biasB")
    weights = bench.at("pretrain-biasB") / "weights.safetensors"
    bench.ran(f"annotate {BIASED} --method random --weights {weights}")
    line = bench.refused(f"annotate {BIASED} --method random --seed 5 --weights {weights}")
    assert line.startswith(f"{weights} was made from other data: ")
    lone = shutil.copy(weights, tmp_path / "lone.safetensors")
    said = bench.ran(f"annotate {BIASED} --method random --seed 5 --weights {lone}").out
    assert "it may have been trained on images of the pool" in said


def test_a_folder_without_a_pool_or_with_a_broken_image_is_one_line(new_bench, tmp_path, waves):
    bench = new_bench(waves(tmp_path / "waves"), tmp_path / "output")
    bench.ran("eval -e 1")
    assert f"{bench.data / 'pool'} is no folder; give one of images without labels" in bench.refused("annotate")
    (bench.data / "pool").mkdir()
    assert "holds no image" in bench.refused("annotate")
    (bench.data / "pool" / "a.png").write_bytes(b"no image")
    assert "a.png is no readable image" in bench.refused("annotate")


def test_large_photographs_are_shown_larger_than_the_network_sees_them(new_bench, tmp_path, waves):
    bench = new_bench(waves(tmp_path / "waves"), tmp_path / "output")
    bench.ran("eval -e 1 --limit 5")
    (bench.data / "pool").mkdir()
    for number in range(6):
        Image.effect_noise((300, 200), 40).convert("RGB").save(bench.data / "pool" / f"photo {number}.JPG")
    bench.ran("annotate --method random --budget 2 --limit 5")
    page = (bench.at("annotate-random-budget2-limit5") / "contact.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert selection_of(bench, "annotate-random-budget2-limit5").facts["pool"] == 5


@pytest.mark.parametrize(
    ("budget", "pool", "count"),
    [("1%", 35_000, 350), ("5%", 35_000, 1_750), ("10%", 35_000, 3_500), ("1%", 79_289, 792), ("5%", 79_289, 3_964),
     ("10%", 79_289, 7_928), ("1%", 29_270, 292), ("5%", 29_270, 1_463), ("10%", 29_270, 2_927), ("2.5%", 1_000, 25),
     ("7", 7, 7), ("100%", 7, 7)],
)  # fmt: skip
def test_budgets_are_rounded_down(budget, pool, count):
    assert affordable(budget, pool) == count


def test_a_budget_beyond_the_pool_is_refused():
    with pytest.raises(UserError, match="8 of 7 images"):
        affordable("8", 7)


def test_an_encoder_from_a_file_chooses_and_is_named_and_relearn_finds_the_choice(waves_bench, tmp_path, monkeypatch):
    """A smaller ResNet stands in for the ResNet-50 of MoCo v3; another file is another run."""
    monkeypatch.setattr(given_encoder, "resnet50", lambda weights: ResNet(BasicBlock, [1, 1, 1, 1]))
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = ResNet(BasicBlock, [1, 1, 1, 1]).state_dict()
        body = {f"module.base_encoder.{key}": value for key, value in state.items() if not key.startswith("fc.")}
        torch.save({"state_dict": body}, tmp_path / f"moco{seed}.pth.tar")
        said = waves_bench.ran(f"annotate {BIASED} --method coreset --features {tmp_path}/moco{seed}.pth.tar").out
        assert f"inherited {tmp_path}/moco{seed}.pth.tar: 512 features of each image" in said
    folders = sorted(path.name for path in waves_bench.root.glob("annotate-coreset-*given-*"))
    assert len(folders) == 2
    told = [waves_bench.json(f"{name}/selection.json") for name in folders]
    assert {each["features"] for each in told} == {"file"}
    names = {f"MoCo v3 resnet50, moco{seed}.pth.tar" for seed in (1, 2)}
    assert {each["encoder"]["encoder"] for each in told} == names
    line = f"relearn {BIASED} --method coreset --features_file {tmp_path}/moco2.pth.tar -e 1 --max_batches 1"
    waves_bench.ran(line)
    (repaired,) = waves_bench.root.glob("relearn-coreset-*given-*")
    found = waves_bench.json(f"{repaired.name}/metrics.json")
    assert (found["features"], found["encoder"]) == ("file", "MoCo v3 resnet50, moco2.pth.tar")
