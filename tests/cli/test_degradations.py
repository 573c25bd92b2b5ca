"""Degradations of one's own on the command line: functions, folders of images, released files, held-out types."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

RAIN = """
import torch

def streaks(pixels, generator):
    return pixels + {strength} * torch.randn(pixels.shape[0], 1, 1, pixels.shape[3], generator=generator)
"""
PATCH = "-f perfloss -c patch --susp_ratio 0.5"


def write_function(folder, strength):
    (folder / "weather_here.py").write_text(RAIN.format(strength=strength))
    sys.modules.pop("weather_here", None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of the test's own, with a module of one's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_function(tmp_path, 0.2)
    yield tmp_path
    sys.modules.pop("weather_here", None)


def degraded_copy(data, folder, *, rename=False, parts=("train", "test")):
    """Write blurred copies of an image folder; with `rename` they have other names, and some classes have fewer."""
    for part in parts:
        for file in sorted((data / part).glob("*/*.png")):
            if rename and part == "test" and file.parent.name == "class1" and file.stem > "004":
                continue
            place = folder / part / file.parent.name if len(parts) > 1 else folder / file.parent.name
            place.mkdir(parents=True, exist_ok=True)
            name = f"other{file.stem}.jpg" if rename else f"{file.stem}.jpg"
            with Image.open(file) as image:
                image.filter(ImageFilter.GaussianBlur(1.2)).save(place / name, quality=95)
    return folder


def test_a_function_of_one_s_own_goes_through_all_stages(pretrained, here):
    given = "-n weather_here:streaks"
    pretrained.ran(f"eval -e 1 {given}")
    pretrained.ran(f"select -f featswap {given}")
    pretrained.ran(f"correct -f featswap -c patch --crt_epoch 1 {given}")
    pretrained.ran(f"switch -f featswap -c patch {given}")
    (folder,) = pretrained.root.glob("switch-*")
    assert "-weather_here-streaks-" in folder.name
    accuracy = json.loads((folder / "metrics.json").read_text())["accuracy_percent"]["switched"]
    assert list(accuracy) == ["clean", "streaks", "blurred", "append", "mixed"]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write_function(here, 0.4)
    assert "is missing" in pretrained.refused(f"select -f featswap {given}")
    pretrained.ran(f"eval -e 1 {given}")
    pretrained.ran(f"select -f featswap {given}")
    assert len(list(pretrained.root.glob("assess-featswap-weather_here-streaks-*"))) == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weather_here:hail", "weather_here has nothing called hail"),
        ("nowhere:rain", "nowhere cannot be imported from"),
        ("weather_here:torch", "is module; name a function of (pixels, generator)"),
        ("weather_here:moods", "weather_here:moods gives other results each time: draw random numbers from the"),
        ("weather_here:clear", "the corruption clear fails on pixels (6, 3, 32, 32) and a torch.Generator: TypeError"),
        ("weather_here:leave", "the corruption leave fails on pixels (6, 3, 32, 32) and a torch.Generator: SystemExit"),
        ("folder:nowhere", "nowhere: no such folder; --noise_type folder:PATH names one of degraded images"),
        ("released:.", "has no file such as gaussian_noise.npy; unpack CIFAR-10-C or CIFAR-100-C there"),
    ],
)
def test_mistakes_are_one_line(pretrained, here, name, said):
    with (here / "weather_here.py").open("a") as file:
        file.write("\ndef moods(pixels, generator):\n    return pixels * torch.rand(1)\n")
        file.write("\ndef clear(pixels):\n    return pixels\n")
        file.write("\ndef leave(pixels, generator):\n    raise SystemExit\n")
    sys.modules.pop("weather_here", None)
    assert said in pretrained.refused(f"eval -n {name}")


def test_images_with_the_names_of_clean_ones_are_paired(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    given = f"--degraded {folder}"
    assert "each paired with the clean image of its name" in pretrained.ran(f"eval -e 2 --lr 0.1 {given}").out
    pretrained.ran(f"select -f featswap {given}")
    pretrained.ran(f"correct -f featswap -c patch --crt_epoch 1 {given}")
    pretrained.ran(f"switch -f featswap -c patch -n folder:{folder}")
    (found,) = pretrained.root.glob("switch-*")
    assert found.name.startswith("switch-patch-replace-featswap-probe-folder-wet-")
    table = json.loads((found / "metrics.json").read_text())
    assert list(table["accuracy_percent"]["pretrained"])[:2] == ["clean", "wet"]


def test_images_of_other_names_rank_by_perfloss_and_not_by_featswap(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet", rename=True)
    given = f"-n folder:{folder}"
    assert "21 test images, not paired with clean ones by name" in pretrained.ran(f"eval -e 2 --lr 0.1 {given}").out
    refused = pretrained.refused(f"select -f featswap {given}")
    assert "featswap compares each degraded image with its clean one" in refused
    assert "use perfloss or taylor" in refused
    for method in ("perfloss", "taylor"):
        pretrained.ran(f"select -f {method} {given}")
    pretrained.ran(f"correct {PATCH} --crt_epoch 2 --lr 0.1 {given}")
    pretrained.ran(f"switch {PATCH} {given}")
    for correction in ("norms --epochs 0", "norms --epochs 1", "bank", "bank --conditions type"):
        pretrained.ran(f"correct -c {correction} {given}")
    (found,) = pretrained.root.glob("switch-*")
    table = json.loads((found / "metrics.json").read_text())["accuracy_percent"]
    for network in ("pretrained", "patched always on", "switched"):
        assert table[network]["wet"] * 21 / 100 == pytest.approx(round(table[network]["wet"] * 21 / 100))
        assert table[network]["clean"] * 24 / 100 == pytest.approx(round(table[network]["clean"] * 24 / 100))


def test_an_image_that_is_replaced_makes_another_run(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    pretrained.ran(f"eval -e 1 --degraded {folder}")
    shutil.copy(folder / "test/class0/000.jpg", folder / "test/class0/001.jpg")
    pretrained.ran(f"eval -e 1 --degraded {folder}")
    assert len(list(pretrained.root.glob("pretrain-folder-wet-*"))) == 2


def test_an_image_that_moves_to_another_class_makes_another_run(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet", rename=True)
    for file in (folder / "train/class1").iterdir():
        file.rename(file.with_name(f"z{file.name}"))
    pretrained.ran(f"eval -e 1 --degraded {folder}")
    first = min((folder / "train/class1").iterdir())
    first.rename(folder / "train/class0" / first.name)  # the same images in the same order
    pretrained.ran(f"eval -e 1 --degraded {folder}")
    assert len(list(pretrained.root.glob("pretrain-folder-wet-*"))) == 2


def test_folders_of_degraded_images_may_be_links(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    (here / "linked").mkdir()
    for part in ("train", "test"):
        (here / "linked" / part).symlink_to(folder / part)
    assert "each paired with" in pretrained.ran(f"eval -e 1 --degraded {here / 'linked'}").out


def test_what_cannot_be_degraded_is_told_before_the_training(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    before = sorted(pretrained.root.rglob("*"))
    said = pretrained.refused(f"eval --train -e 1 -n folder:{folder},folder:{folder}/../wet")
    assert "two levels are called wet" in said
    assert sorted(pretrained.root.rglob("*")) == before


def test_other_classes_are_refused(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    (folder / "test/class0").rename(folder / "test/zebra")
    assert "name different classes (class0, zebra)" in pretrained.refused(f"eval --degraded {folder}")


def test_test_images_alone_are_measured_and_no_more(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet", parts=("test",))
    pretrained.ran(f"eval -e 1 --degraded {folder}")
    refused = pretrained.refused(f"select --degraded {folder}")
    assert "degraded test images only" in refused
    assert "--hold_out" in refused


def write_released(folder, data):
    """Write two types in the form of CIFAR-10-C for the test images of an image folder: noise, and darkness."""
    files = sorted((data / "test").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    folder.mkdir()
    noise = np.random.default_rng(1).integers(-30, 31, pixels.shape)
    noisy = [np.clip(pixels + 0.5 * level * noise, 0, 255) for level in range(1, 6)]
    np.save(folder / "gaussian_noise.npy", np.concatenate(noisy).astype(np.uint8))
    np.save(folder / "fog.npy", np.concatenate([pixels // (level + 1) for level in range(1, 6)]).astype(np.uint8))
    np.save(folder / "labels.npy", np.tile([int(file.parent.name[-1]) for file in files], 5))
    return folder


def test_released_files_are_measured_where_they_lie(pretrained, here):
    folder = write_released(here / "C", pretrained.data)
    pretrained.ran(f"eval -e 1 -n released:{folder} --severity 1,5")
    (found,) = pretrained.root.glob("pretrain-released-C-sev15-*")
    columns = list(json.loads((found / "metrics.json").read_text())["accuracy_percent"])
    assert columns[:5] == ["clean", "gaussian_noise-1", "gaussian_noise-5", "fog-1", "fog-5"]


def test_held_out_types_are_measured_apart_and_seen_by_nothing_else(pretrained, here):
    """Training with them held out is training without them, to the byte."""
    folder = write_released(here / "C", pretrained.data)
    released = f"released:{folder}"
    given = f"-n brightness,contrast,{released} --severity 1,5 --hold_out contrast,{released}"
    said = pretrained.ran(f"eval -e 3 --lr 0.1 {given}").out
    assert "contrast *" in said
    assert "held out: not used for ranking, training and calibration" in said
    for line in (f"select {given}", f"correct {PATCH} --crt_epoch 1 --lr 0.1 {given}"):
        pretrained.ran(line)
    said = pretrained.ran(f"switch {PATCH} {given}").out
    long = [
        line
        for line in said.splitlines()
        if not line.startswith(("[info]", "repaired", "intervals")) and len(line) > 100
    ]
    assert long == []
    (found,) = pretrained.root.glob("switch-*")
    assert "-without-contrast+released-C-" in found.name
    metrics = json.loads((found / "metrics.json").read_text())
    assert list(metrics["accuracy_percent"]["switched"])[1:3] == ["brightness-1", "brightness-5"]
    assert metrics["held_out"]["levels"] == [
        "contrast-1", "contrast-5", "gaussian_noise-1", "gaussian_noise-5", "fog-1", "fog-5"
    ]  # fmt: skip
    table = pd.read_csv(found / "corruptions.csv")
    assert set(table.corruption[table.held_out]) == {"contrast", "gaussian_noise", "fog"}
    assert set(table.corruption[~table.held_out]) == {"clean", "brightness"}
    weights = next(pretrained.root.glob("pretrain-*-without-*/weights.safetensors"))
    base = f"--base {weights}"
    alone = "-n brightness --severity 1,5"
    pretrained.ran(f"select {alone} {base}")
    pretrained.ran(f"correct {PATCH} --crt_epoch 1 --lr 0.1 {alone} {base}")
    for name in ("assess-*/ranking.csv", "correct-*/patch.safetensors"):
        one, two = (path.read_bytes() for path in pretrained.root.glob(name))
        assert one == two


def test_what_cannot_be_held_out_is_one_line(pretrained, here):
    assert "fog cannot be held out of noise" in pretrained.refused("eval -n noise --hold_out fog")
    assert "leaves no degradation to train on" in pretrained.refused("eval -n fog --hold_out fog")


def test_images_of_several_sizes_can_be_degraded_by_a_function(new_bench, waves, tmp_path, here):
    """What names the run is measured on images of the run's size, not of their own."""
    bench = new_bench(waves(tmp_path / "waves"), tmp_path / "output")
    write_function(here, 0.2)
    odd = next((bench.data / "train").rglob("*.png"))
    Image.open(odd).resize((50, 40)).save(odd)
    assert "images of 32x32 pixels" in bench.ran("eval -e 1 -n weather_here:streaks").out


def test_what_is_no_image_among_degraded_ones_is_passed_over(pretrained, here):
    folder = degraded_copy(pretrained.data, here / "wet")
    place = next((folder / "test").iterdir())
    (place / ".hidden.png").write_bytes(b"no image")
    (folder / "test" / "__MACOSX").mkdir()
    said = pretrained.ran(f"eval -e 1 --degraded {folder}").out
    assert "each paired with the clean image of its name" in said
