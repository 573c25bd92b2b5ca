from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from deeppatch.cli.predecessors import check_classes
from deeppatch.errors import WrongWeights
from deeppatch.stage import Stage
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.entries import ENTRIES

PATCH = "correct-patch-replace-perfloss/patch.safetensors"
RANKING = "assess-perfloss/ranking.json"
WEIGHTS = "pretrain/weights.safetensors"
TUNED = "correct-finetune/weights.safetensors"
# what each stage reads first, and the script that makes it
MISSING = {
    "select -f featswap": (WEIGHTS, "eval"),
    "correct -c finetune": (WEIGHTS, "eval"),
    "correct": (RANKING, "select"),
    "switch": (PATCH, "correct"),
    "switch --susp_ratio 0.4 --susp_side rear --crt_type crtunit -f featswap": (
        "correct-patch-crtunit-featswap-ratio0.4-rear/patch.safetensors", "correct",
    ),
    "eval --state corrected": (PATCH, "correct"),
    "eval --state corrected -c finetune": (TUNED, "correct"),
}  # fmt: skip
# what makes each missing file quickly, in addition to what the message says
QUICKLY = {"eval": "-e 1", "select": "", "correct": "--crt_epoch 1"}
READERS = {
    WEIGHTS: ["select -f featswap", "correct", "correct -c finetune", "switch", "eval --state corrected"],
    RANKING: ["correct"],
    PATCH: ["switch", "eval --state corrected"],
    TUNED: ["switch", "eval --state corrected -c finetune"],
}
REPLACE = "-f perfloss -c patch --crt_type replace"
MAKERS = {WEIGHTS: "eval", RANKING: "select", PATCH: "correct", TUNED: "correct"}
DAMAGED = [(path, line) for path, lines in READERS.items() for line in lines]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {"empty": b"", "half": content[: len(content) // 2]}
    path.write_bytes(changed.get(how, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]))


def stands_alone(line: str, path: Path) -> bool:
    return line.startswith(f"{path} ")


# unknown things, absent things


@pytest.mark.parametrize("script", ["eval", "select -f featswap", "correct", "switch"])
def test_unknown_data_is_named_whatever_the_stage(empty, script):
    line = empty.refused(f"{script} -d mnist")
    known = (
        "digits, cifar10, cifar100, svhn, gtsrb, svhn_5, digits_5, stl10, tinyimagenet, imagenet, cifar10-mix:T, "
        "svhn-mix:T, digits-mix:T"
    )
    assert line == (
        f"mnist: unknown data set; choose from {known}, folder:PATH, npz:FILE or hf:PATH, "
        "or select classes, as digits:0-4"
    )
    guess = empty.refused(f"{script} -d cifr10")
    assert guess.startswith("cifr10: unknown data set (did you mean cifar10?); choose from digits, ")


def test_an_unknown_model_is_one_line_with_the_choices(empty):
    line = empty.refused("eval -m resnet9")
    assert "resnet9" in line
    assert all(name in line for name in ARCHITECTURES)


def test_an_image_folder_that_is_not_there_is_named(empty):
    line = empty.refused("eval -d folder:nowhere")
    assert line == "nowhere/train is missing; an image folder is laid out as nowhere/{train,test}/CLASS/IMAGE"
    assert not empty.output.exists()


@pytest.mark.parametrize("line", MISSING)
def test_a_missing_stage_is_named_with_the_command_that_mends_it(chain, tmp_path, line):
    name, script = MISSING[line]
    keep = {WEIGHTS: ["assess-perfloss"], RANKING: ["pretrain"]}.get(name, ["pretrain", "assess-perfloss"])
    bench = chain.copy(tmp_path / "output", *keep, "assess-featswap")
    path = bench.at(name)
    said = bench.refused(line)
    assert stands_alone(said, path)
    start, command = said.split("; make it with: ")
    assert start.split("; finished runs differ: ")[0] == f"{path} is missing"
    assert command.startswith(f"python src/{script}.py -m resnet8 ")
    if script == "select":  # minutes at full length; its file is what counts here
        return
    mended = bench.type_in(f"{command} {QUICKLY[script]} --device cpu -b 12")
    assert (mended.status, mended.err) == (0, "")
    assert bench.at(name).is_file()
    again = bench.run(f"{line} {QUICKLY.get(line.split()[0], '')}")
    assert (again.status, again.err) == (0, ""), "what was missing is all that was missing"


def test_the_commands_of_the_messages_followed_one_by_one_reach_evaluate(empty):
    made = []

    def follow(result, again):
        while result.status:
            command = result.err.strip().split("; make it with: ")[1]
            script = re.match(r"python src/(\w+)\.py", command).group(1)
            typed = f"{command} {QUICKLY[script]} --device cpu -b 12"
            follow(empty.type_in(typed), lambda typed=typed: empty.type_in(typed))
            made.append(script)
            assert len(made) < 9, "the commands do not make what is missing"
            result = again()

    line = "switch -f featswap --limit 9 --susp_side random --crt_type crtunit --seed 7"
    follow(empty.run(line), lambda: empty.run(line))
    assert made == ["eval", "select", "correct"]


def test_the_command_of_a_message_can_be_typed_where_paths_have_spaces(empty, tmp_path):
    said = empty.refused(f"select --output_dir '{tmp_path}/my results'")
    assert empty.type_in(f"{said.split('; make it with: ')[1]} -e 1").status == 0
    assert list((tmp_path / "my results" / empty.slug / "resnet8").glob("pretrain-*/weights.safetensors"))


@pytest.mark.parametrize("line", ["eval", "select -f featswap", "correct", "correct -c finetune", "switch"])
def test_weights_that_are_not_there(pretrained, line):
    said = pretrained.refused(f"{line} --weights nowhere.safetensors")
    assert "nowhere.safetensors" in said
    assert said.endswith("; check the path")


@pytest.mark.parametrize("given", ["nowhere.json", "."])
def test_a_ranking_that_cannot_be_read(pretrained, given):
    said = pretrained.refused(f"correct --ranking {given}")
    assert stands_alone(said.replace(":", " ", 1), Path(given))
    assert said.endswith("; check the path")


# weights that do not fit


def save(path: Path, model: str, classes: int) -> str:
    torch.save(ARCHITECTURES[model](classes).state_dict(), path)
    return str(path)


def test_weights_of_another_number_of_classes(empty, tmp_path):
    said = empty.refused(f"eval --weights {save(tmp_path / 'ten.pt', 'resnet8', 10)}")
    assert said == f"{tmp_path}/ten.pt is for 10 classes, the data set has 3; choose the data set that it was made for"
    assert not empty.output.exists()


@pytest.mark.parametrize("model", ["resnet20", "resnet20a", "mobilenetv2_x0_5"])
def test_weights_of_another_network(empty, tmp_path, model):
    said = empty.refused(f"eval --weights {save(tmp_path / 'other.pt', model, 3)}")
    assert stands_alone(said, tmp_path / "other.pt")
    assert "is for another network (" in said
    assert said.endswith(f"; it fits {model}: choose that with -m")
    assert not empty.output.exists()


def test_values_that_no_network_can_have_are_refused_before_anything_is_written(empty, tmp_path):
    state = ARCHITECTURES["resnet8"](3).state_dict()
    state["layer1.0.bn1.running_var"][0] = -1
    torch.save({"net": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "given.pt")
    said = empty.refused(f"eval --weights {tmp_path}/given.pt")
    assert "given.pt: module.layer1.0.bn1.running_var holds a negative variance" in said
    assert not empty.output.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("how", ["empty", "half", "junk", "text"])
def test_a_weights_file_that_is_damaged_or_none(empty, tmp_path, suffix, how):
    path = tmp_path / f"given.{suffix}"
    state = ARCHITECTURES["resnet8"](3).state_dict()
    if suffix == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    if how in ("junk", "text"):
        path.write_bytes(b"junk" if how == "junk" else b"These are no weights.\n" * 99)
    else:
        damage(path, how)
    said = empty.refused(f"eval --weights {path}")
    assert stands_alone(said, path)
    assert "damaged" in said
    assert not empty.output.exists()


@pytest.mark.parametrize("content", ["network", "list", "optimizer"])
def test_a_checkpoint_that_holds_something_else(empty, tmp_path, content):
    path = tmp_path / "other.pt"
    network = ARCHITECTURES["resnet8"](3)
    torch.save({"network": network, "list": [1, 2], "optimizer": {"state": {}, "lr": 0.1}}[content], path)
    said = empty.refused(f"eval --weights {path}")
    assert stands_alone(said, path)
    assert "torch.save(model.state_dict(), FILE)" in said


def test_a_file_named_as_a_published_one_must_be_that(empty, tmp_path):
    path = tmp_path / ENTRIES["cifar10", "resnet32"].url.rsplit("/", 1)[1]
    path.write_bytes(Path(save(tmp_path / "other.pt", "resnet8", 3)).read_bytes())
    assert empty.refused(f"eval --weights {path}").startswith(f"{path} is damaged: its SHA-256 begins ")


def test_weights_without_normalisation_are_sent_through_pretrain(empty, tmp_path):
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(ARCHITECTURES["resnet8"](3).state_dict(), path)
    said = empty.refused(f"correct -c finetune --crt_epoch 1 --weights {path}")
    assert stands_alone(said, path)
    command = said.split(", which this leaves: ")[1]
    assert empty.type_in(f"{command} --device cpu").status == 0
    empty.ran("correct -c finetune --crt_epoch 1")


def test_a_torch_checkpoint_is_no_damaged_file_to_the_later_stages(empty, tmp_path):
    path = save(tmp_path / "mine.pt", "resnet8", 3)
    said = empty.run(f"correct -c finetune --crt_epoch 1 --weights {path}").err
    assert "delete" not in said
    assert said == "" or f"which this leaves: python src/eval.py -m resnet8 -d folder:{empty.data}" in said


# artifacts that are damaged, or of another base


@pytest.mark.parametrize("how", ["half", "flipped"])
@pytest.mark.parametrize(("path", "line"), DAMAGED)
def test_a_damaged_artifact_is_named_with_the_command_that_makes_it_again(bench, path, line, how):
    damage(bench.at(path), how)
    said = bench.refused(line)
    assert said.startswith(f"{bench.at(path)} is damaged or was changed by hand; make it again with: ")
    assert f"python src/{MAKERS[path]}.py -m resnet8 -d folder:{bench.data} " in said


@pytest.mark.parametrize(
    "how", ["empty", "half", "[]", "null", "{}", '{"outputs": {}}', '{"outputs": [], "inputs": {}}']
)
@pytest.mark.parametrize(("path", "line"), [(WEIGHTS, "select -f featswap"), (PATCH, "switch")])
def test_a_damaged_record_is_named_too(bench, path, line, how):
    record = (bench.at(path)).with_name("run.json")
    if how in ("empty", "half"):
        damage(record, how)
    else:
        record.write_text(how)
    said = bench.refused(line)
    assert stands_alone(said, record)
    assert f"make it again with: python src/{MAKERS[path]}.py" in said


def test_outputs_without_a_record_are_those_of_an_unfinished_run(bench):
    (bench.at("pretrain") / "run.json").unlink()
    said = bench.refused("select -f featswap")
    assert "make it with: python src/eval.py" in said


def test_a_ranking_of_other_weights(bench, chain):
    bench.overwrite_base()
    said = bench.refused("correct")
    weights = bench.at(WEIGHTS)
    assert said.startswith(f"{bench.at(RANKING)} was made from another {weights}; make it again with: python src/se")
    said = bench.refused(f"correct --ranking {chain.at(RANKING)}")
    assert said.startswith(f"{chain.at(RANKING)} ranks the filters of other weights; make it again with: ")


@pytest.mark.parametrize("line", ["switch", "eval --state corrected"])
def test_a_patch_of_another_base(bench, chain, tmp_path, line):
    bench.overwrite_base()
    patch, weights = bench.at(PATCH), bench.at(WEIGHTS)
    said = bench.refused(line)
    assert said.startswith(f"{patch} was made from another {weights}; make it again with: python src/correct.py ")
    said = chain.copy(tmp_path / "other").refused(f"{line} --weights {weights}")
    assert "trained on other base weights" in said


def test_a_patch_of_another_base_is_named_with_the_command_that_makes_it_for_this_one(bench, chain, tmp_path):
    bench.overwrite_base()
    other = chain.copy(tmp_path / "other")
    said = other.refused(f"switch --weights {bench.at(WEIGHTS)}")
    assert str(other.at(PATCH)) in said
    assert f"with: python src/correct.py -m resnet8 -d folder:{bench.data} " in said


@pytest.mark.parametrize("line", ["switch", "eval --state corrected -c finetune"])
def test_a_network_finetuned_from_another_base_is_not_taken_for_one_from_this(bench, chain, tmp_path, line):
    bench.overwrite_base()
    other, given = chain.copy(tmp_path / "other"), f"--weights {bench.at(WEIGHTS)}"
    ranking = other.rank_by_hand(tmp_path / "ranking.json", bench.at(WEIGHTS))
    other.ran(f"correct --crt_epoch 1 --ranking {ranking} {given}")
    result = other.run(f"{line} {given}")
    assert f"inherited {other.at(TUNED)}" not in result.out


def test_two_image_folders_of_one_name_do_not_mix(empty, waves, tmp_path):
    first, second = (waves(tmp_path / place / "photos", seed=len(place)) for place in ("a", "bb"))
    empty.ran(f"eval -e 1 -d folder:{first}")
    assert "missing" in empty.refused(f"select -f featswap -d folder:{second}")


@pytest.mark.parametrize(
    "edit",
    [
        "channel", "layer", "none", "text", "order",
        "one twice",
        "digits",
        "ratio text",
        "ratio 2",
    ],
)  # fmt: skip
def test_a_ranking_that_does_not_fit_the_network(bench, tmp_path, edit):
    content = json.loads((bench.at(RANKING)).read_bytes())
    layers = content["layers"]
    order = layers["conv1"]["order"]
    if edit == "channel":
        order[0] = order[1]
    elif edit == "layer":
        layers["conv9"] = layers["conv1"]
    elif edit == "text":
        order[0] = "first"
    elif edit == "order":
        layers["conv1"]["order"] = None
    elif edit == "one twice":
        order.insert(0, order[2])
    elif edit == "digits":
        layers["conv1"]["order"] = [str(channel) for channel in order]
    elif edit.startswith("ratio"):
        content["ratio"] = 2.0 if edit == "ratio 2" else "half"
    else:
        content = [content]
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    assert str(path) in bench.refused(f"correct --ranking {path} --crt_epoch 1")


# options that cannot be


def test_cuda_asked_for_and_absent(empty, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert empty.refused("eval --device cuda").startswith("--device cuda: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert empty.refused("eval --device cuda --gpu 7") == "--gpu 7: there are 2 CUDA devices; choose 0 to 1"


def test_all_contradictions_are_told_at_once(empty):
    said = empty.refused(
        "eval -b 0 -e -1 --crt_epoch 0 --lr 0 --limit 0 --susp_ratio 2 --momentum 1 --weight_decay -1 --seed -1 "
        "--gpu 2 --train --weights x --mean 0 0 0"
    )
    named = [problem.split()[0].rstrip(":") for problem in said.split("; --")]
    assert {name.removeprefix("--") for name in named} == {
        "batch_size", "max_epoch", "crt_epoch", "lr", "limit", "susp_ratio", "momentum", "weight_decay", "seed",
        "gpu", "train", "mean",
    }  # fmt: skip
    assert not empty.output.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eval --state corrected --train", "leave out --train, --recipe, --bias, --mean and --std"),
        ("eval --std 1 0 1 --mean 0 0 0", "--std: give numbers above 0"),
        ("switch --calibrate_on tset:5", "--calibrate_on tset:5: give val, test:N or folder:PATH"),
        ("switch --router flip", "invalid choice: flip (did you mean flips?)"),
        ("eval --mean 124 116 104 --std 58 57 57", "--mean: pixels reach from 0 to 1; divide mean and std of pixels"),
        ("switch --max-clean-drop 101", "--max_clean_drop 101.0: give points from 0 to 100"),
        ("correct --susp_ratio 0.01", "--susp_ratio 0.01 chooses no filter in any layer; give a larger share"),
        ("eval --limit 2", "2 of 24 images cannot hold every class; use more images or a larger limit"),
    ],
)
def test_options_of_one_stage_that_contradict_each_other(bench, line, said):
    assert said in bench.refused(line)


@pytest.mark.parametrize(
    "given",
    [
        "--lr inf", "--lr nan", "--weight_decay nan", "--weight_decay inf", "--susp_ratio nan", "--momentum nan",
        "--mean nan 0 0 --std 1 1 1",
        "--mean 0 0 0 --std nan 1 1",
    ],
)  # fmt: skip
def test_numbers_that_are_none(empty, given):
    assert re.match(r"--(\w+)", empty.refused(f"eval -e 1 {given}")).group() in given.split()


def test_threads_that_are_no_number(empty, launch, refusal):
    script, arguments = empty.arguments("eval -e 1")
    for given in ("many", "-1", "1.5", "\u0663"):
        said = refusal(launch(script, arguments, DEEPPATCH_THREADS=given))
        assert said.startswith(f"DEEPPATCH_THREADS={given}: give a whole number of threads")


@pytest.mark.parametrize("given", ["abc", "", "0", "-1", "2,", "\u0663"])
def test_threads_that_a_library_would_complain_of_in_words_of_its_own(empty, launch, refusal, given):
    script, arguments = empty.arguments("eval -e 1")
    assert refusal(launch(script, arguments, OMP_NUM_THREADS=given)).startswith(
        f"OMP_NUM_THREADS={given}: give a whole"
    )


def test_more_threads_than_a_machine_can_bear_are_refused(empty, launch, refusal):
    script, arguments = empty.arguments("eval -e 1")
    most = 4 * (os.cpu_count() or 1)
    for given in (str(most + 1), "5000", "99999999", "9" * 5000):
        said = refusal(launch(script, arguments, DEEPPATCH_THREADS=given))
        assert said.startswith("DEEPPATCH_THREADS=")
        assert said.endswith(f": give at most {most}, four for each core of this machine")


@pytest.mark.parametrize("option", ["--output_dir", "--weights", "-d", "--data_dir"])
def test_a_character_that_no_path_can_have(empty, option):
    assert "has a NUL character" in empty.refused(f"eval {option} 'a\0b'")


# data sets that cannot be


def spoil(folder: Path, how: str) -> None:
    """Damage an image folder."""
    if how == "no test part":
        shutil.rmtree(folder / "test")
    elif how == "class without images":
        (folder / "train" / "class9").mkdir()
        (folder / "test" / "class9").mkdir()
    elif how == "class in one part":
        shutil.rmtree(folder / "test" / "class1")
    elif how == "no class":
        shutil.rmtree(folder / "train")
        (folder / "train").mkdir()
    elif how == "no image":
        (folder / "train" / "class0" / "000.png").write_text("no image")
    else:
        damage(folder / "train" / "class0" / "000.png", "half")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no test part", "/test is missing; an image folder is laid out as "),
        ("class without images", "/train: Found no valid file for the classes class9."),
        ("class in one part", ": train and test name different classes (class1); give both the same"),
        ("no class", "/train: Couldn't find any class folder in "),
        ("no image", "/train/class0/000.png is no readable image; replace or delete it"),
        ("half an image", "/train/class0/000.png is no readable image; replace or delete it"),
    ],
)
def test_an_image_folder_that_is_not_as_it_should_be(empty, waves, tmp_path, how, said):
    folder = waves(tmp_path / "pictures", train=5, test=2)
    spoil(folder, how)
    line = empty.refused(f"eval -d folder:{folder}")
    assert line.startswith(f"{folder}{said}")
    assert not empty.output.exists()


def test_a_limit_just_below_the_number_of_images_is_one(empty):
    empty.ran("eval -e 1 --limit 23")
    assert empty.json("pretrain-limit23/metrics.json")["test_images"] == 23


def test_classes_in_another_order_are_said(caplog):
    classes = [str(number) for number in range(11)]
    context = SimpleNamespace(
        about={"classes": classes, "image_size": [8, 8]},
        source=SimpleNamespace(name="mine"),
        options=SimpleNamespace(dataset="folder:mine"),
    )
    with pytest.raises(WrongWeights, match=r"w.pt was made for the same classes in another order .*: 0, 1, 10, 2"):
        check_classes(context, {"classes": sorted(classes)}, Path("w.pt"))
    caplog.set_level(logging.INFO, "deeppatch")
    check_classes(context, {"classes": classes}, Path("w.pt"))
    assert caplog.text == ""
    check_classes(context, {}, Path("w.pt"))
    assert "w.pt does not name its classes; here they are ordered as numbers (0, 1, 2, 3, ...)" in caplog.text


def test_arrays_that_are_not_there_or_lack_labels(empty, tmp_path):
    assert empty.refused("eval -d npz:nowhere.npz") == "nowhere.npz: there is no such file; check the path"
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8))
    assert empty.refused(f"eval -d npz:{tmp_path}/x.npz").startswith(f"{tmp_path}/x.npz holds images; give arrays ")
    assert not empty.output.exists()


def test_a_single_class_is_named_with_its_count(empty, waves, tmp_path):
    folder = waves(tmp_path / "one", classes=1, train=6, test=2)
    said = empty.refused(f"eval -e 1 -d folder:{folder}")
    assert said == f"{folder / 'train'} has a single class, class0, with 6 images; a classifier needs at least two"


def test_a_network_whose_logits_are_not_finite_is_said_to_be_one(empty, tmp_path):
    state = {key: value * 1e30 for key, value in ARCHITECTURES["resnet8"](3).state_dict().items()}
    torch.save(state, tmp_path / "large.pt")
    assert "logits that are not finite; check its weights" in empty.refused(f"eval --weights {tmp_path}/large.pt")


def test_training_that_diverges_says_so(pretrained):
    assert "lower learning rate" in pretrained.refused("correct -c finetune --crt_epoch 1 --lr 1e30")


def test_too_few_images_for_a_split(empty, waves, tmp_path):
    folder = waves(tmp_path / "few", train=2, test=1)
    said = empty.refused(f"eval -d folder:{folder}")
    assert said.startswith("folder-few")
    assert said.endswith(": 1 of 6 images cannot hold every class; use more images or a larger limit")


# machines that fail


def refuse_network(*_arguments, **_options):
    raise urllib.error.URLError("Name or service not known")


def test_weights_cannot_be_downloaded(empty, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse_network)
    said = empty.refused("eval -m resnet32 -d cifar10")
    entry = ENTRIES["cifar10", "resnet32"]
    cached = tmp_path / "cache" / "hub" / "checkpoints" / entry.url.rsplit("/", 1)[1]
    assert said.startswith(f"cannot download {entry.url} (")
    assert f"; put the file at {cached}, give a copy with --weights FILE, or train the network with --train" in said
    assert not empty.output.exists()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


class Download:
    """An answer of the network with content of its own."""

    def __init__(self, content: bytes) -> None:
        self.parts = [content]
        self.headers = {"Content-Length": str(len(content))}

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is open."""

    def info(self) -> Download:
        return self

    def read(self, _size: int = -1) -> bytes:
        return self.parts.pop() if self.parts else b""

    def get_all(self, _name: str) -> list[str]:
        return [self.headers["Content-Length"]]


def test_a_download_that_breaks_off(empty, monkeypatch, tmp_path):
    def break_off(*_arguments):
        raise http.client.IncompleteRead(b"half a file", 100)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "urlopen", lambda _request: Download(b""))
    monkeypatch.setattr(Download, "read", break_off)
    assert empty.refused("eval -m resnet32 -d cifar10").startswith("cannot download ")


def test_a_damaged_download_is_not_kept(empty, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "urlopen", lambda _request: Download(b"half a file"))
    result = empty.run("eval -m resnet32 -d cifar10")
    url = ENTRIES["cifar10", "resnet32"].url
    assert result.status == 2
    assert result.err.splitlines()[-1] == f"error: the download of {url} was damaged; run the same command again"
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_damaged_copy_in_the_cache_is_named(empty, monkeypatch, tmp_path):
    cached = tmp_path / "hub" / "checkpoints" / ENTRIES["cifar10", "resnet32"].url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert empty.refused("eval -m resnet32 -d cifar10").startswith(f"{cached} is damaged: its SHA-256 begins ")


@pytest.mark.parametrize("state", ["absent", "damaged or incomplete"])
def test_a_data_set_that_is_not_there_and_cannot_be_downloaded(empty, monkeypatch, tmp_path, state):
    monkeypatch.setattr("urllib.request.urlopen", refuse_network)
    place = tmp_path / "data" / "cifar-10-batches-py"
    if state != "absent":
        place.mkdir(parents=True)
        (place / "data_batch_1").write_bytes(b"half a file")
    said = empty.refused(f"eval -m resnet8 -d cifar10 --data_dir {tmp_path / 'data'}")
    assert said.startswith(f"cifar10: the files in {place} are {state} and cannot be downloaded (")
    assert f"unpack the archive in {tmp_path / 'data'}" in said


@pytest.mark.parametrize("writes", [0, 3, 6, 9, 11])
def test_a_full_disk_leaves_whole_files_or_none(bench, chain_lines, monkeypatch, writes):
    line, stage = chain_lines["correct-finetune"], "correct-finetune"
    whole, before = bench.hashes(stage), bench.files()
    shutil.rmtree(bench.at(stage))
    left, sync = [writes], os.fsync

    def fill_up(handle):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    assert bench.refused(line).startswith("no space is left for ")
    monkeypatch.undo()
    found = bench.unfinished(stage).iterdir() if bench.unfinished(stage).exists() else []
    remains = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    remains.pop("checkpoint.pt", None)
    assert remains.items() <= whole.items(), "a file is whole or absent, and no other file is there"
    assert "run.json" not in bench.files(stage)
    assert "make it with: python src/correct.py" in bench.refused("eval --state corrected -c finetune")
    bench.ran(f"{line} -r")
    assert bench.hashes(stage) == whole
    assert bench.files() == before


def test_a_full_disk_is_also_one_of_quotas(pretrained, monkeypatch):
    def fill_up(_handle):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fill_up)
    assert pretrained.refused("correct -c finetune --crt_epoch 1").startswith("no space is left for ")


@pytest.mark.parametrize("line", ["eval -e 2", "correct -c finetune --crt_epoch 2", f"correct {REPLACE} --crt_epoch 2"])
def test_a_training_that_becomes_useless_leaves_the_earlier_result(bench, monkeypatch, line):
    begin, begun, whole = Stage.begin, [], bench.at("pretrain")

    def note(stage, **options):
        begun.append(stage.folder)
        begin(stage, **options)

    monkeypatch.setattr(Stage, "begin", note)
    assert "start anew with a lower learning rate" in bench.refused(f"{line} --lr 1e10")
    shutil.copytree(whole, begun[0])  # as if these very settings had left it on another machine
    before = bench.hashes(begun[0].name)
    assert "start anew with a lower learning rate" in bench.refused(f"{line} --lr 1e10")
    assert bench.hashes(begun[0].name) == before
    assert (begun[0] / "run.json").read_bytes() == (whole / "run.json").read_bytes()


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO])
def test_a_disk_that_fails_otherwise_is_one_line_that_names_the_file(pretrained, monkeypatch, number):
    def fail(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    said = pretrained.refused("correct -c finetune --crt_epoch 1")
    assert os.strerror(number) in said
    assert f"{pretrained.root}/.correct-finetune" in said


def test_a_full_disk_leaves_what_was_there_before(bench, monkeypatch):
    before = bench.hashes()

    def fill_up(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill_up)
    for line in ("eval -e 1", "select -f featswap", "correct --crt_epoch 1", "switch", "eval --state corrected"):
        assert bench.refused(line).startswith("no space is left for ")
    assert bench.hashes() == before


@pytest.mark.parametrize("line", ["eval -e 1", "select -f featswap", "correct", "switch", "eval --state corrected"])
def test_a_disk_that_is_nearly_full_is_told_before_the_work(bench, monkeypatch, line):
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(total=1e9, free=1e6))
    monkeypatch.setattr("deeppatch.training.fit", lambda *_given, **_options: pytest.fail("it has begun"))
    before = bench.files()
    assert bench.refused(line).startswith("no space is left for ")
    assert bench.files() == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_an_output_folder_that_cannot_be_written(pretrained, monkeypatch, number):
    def refuse(self, *_arguments, **_options):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for line in ("eval -e 1", "correct -c finetune --crt_epoch 1"):
        said = pretrained.refused(line)
        assert said.startswith(f"cannot write {pretrained.root}: {os.strerror(number)}; choose another --output")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_output_folder(empty):
    empty.output.mkdir(mode=0o555)
    assert empty.refused("eval -e 1").startswith(f"cannot write {empty.output}/")


def test_a_file_where_the_output_folder_should_be(empty):
    empty.output.write_text("a file")
    for line in ("eval -e 1", "eval -e 1 -r"):
        assert empty.refused(line).startswith(f"cannot write {empty.output}")
    assert empty.output.read_text() == "a file"


@pytest.mark.parametrize("name", ["{}", ".{}.unfinished", ".{}.lock"])
def test_a_folder_in_the_place_of_a_file_or_a_file_in_that_of_a_folder(empty, name):
    empty.ran("eval -e 1")
    folder = empty.at("pretrain")
    shutil.rmtree(folder)
    path = folder.with_name(name.format(folder.name))
    path.mkdir() if name.endswith("lock") else path.write_text("a file")
    assert path.name in empty.refused("eval -e 1")
    assert path.exists()


def test_an_output_folder_that_cannot_be_made(empty):
    assert "/proc/nowhere" in empty.refused("eval -e 1 --output_dir /proc/nowhere")


def test_a_reader_that_has_gone_away_makes_no_traceback(empty, monkeypatch):
    def refuse(*_arguments, **_options):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("builtins.print", refuse)
    assert empty.run("eval -e 1").status != 0


def test_a_refusal_of_the_script_itself(launch_process, tmp_path):
    process = launch_process("correct", ["-m", "resnet8", "--output_dir", str(tmp_path)])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    weights = tmp_path / "digits" / "resnet8" / WEIGHTS
    assert err == (
        f"error: {weights} is missing; make it with: "
        f"python src/eval.py -m resnet8 -d digits --output_dir {tmp_path}\n"
    )  # fmt: skip
    assert "Traceback" not in out
