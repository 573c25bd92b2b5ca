"""STL-10 and Tiny ImageNet in their published layouts, in miniature, and what to download where they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import biased_split, names, sources
from deeppatch.data.scaling import Sizing
from deeppatch.errors import DataProblem

WNIDS = ("n01443537", "n01629819", "n01641577")


def binary(folder: Path, counts: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write random images as STL-10's files have them, and return them as (N, 3, row, column) with numbers from 1."""
    folder.mkdir(parents=True)
    draw, stored = np.random.default_rng(3), {}
    for part, count in counts.items():
        pixels = draw.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        numbers = (1 + np.arange(count) % 10).astype(np.uint8)
        pixels.transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # column by column
        numbers.tofile(folder / f"{part}_y.bin")
        stored[part] = pixels, numbers
    return stored


@pytest.mark.parametrize("place", ["stl10", "stl10/stl10_binary", "stl10_binary"])
def test_stl10_is_read_column_by_column_with_classes_from_one(tmp_path, place):
    stored = binary(tmp_path / place, {"train": 12, "test": 5})
    source = sources.load("stl10", tmp_path, 2021)
    for part, name in ((source.train, "train"), (source.test, "test")):
        assert torch.equal(part.pixels, torch.from_numpy(stored[name][0]))
        assert part.labels.tolist() == (stored[name][1].astype(int) - 1).tolist()
    assert (source.classes[0], source.classes[-1], source.mirror, source.augment) == ("airplane", "truck", True, True)
    assert sources.load("stl10", tmp_path, 2021, Sizing(48)).test.pixels.shape == (5, 3, 48, 48)


def test_stl10_may_be_an_image_folder(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "stl10" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (120, 100), "red").save(folder / "0.png")
    source = sources.load("stl10", tmp_path, 2021)
    assert (source.train.pixels.shape, source.classes) == ((2, 3, 96, 96), ("cat", "dog"))


def test_stl10_is_split_as_in_hybrid_repair():
    assert biased_split.SIZES["stl10"] == (2_000, 1_000, 4_000)
    assert biased_split.DRAWN_SHARES["stl10"] == (0.90, 0.75)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: None, "its files are not in "),
        (lambda folder: binary(folder, {"train": 3}), "has no test_X.bin, test_y.bin"),
        (lambda folder: binary(folder, {"train": 3, "test": 2}) and (folder / "test_X.bin").write_bytes(b"1234"),
         "test_X.bin and test_y.bin are damaged or cut off"),
        (lambda folder: binary(folder, {"train": 3, "test": 2}) and (folder / "train_y.bin").write_bytes(b"\x00" * 3),
         "train_X.bin and train_y.bin are damaged or cut off"),
    ],
)  # fmt: skip
def test_what_is_missing_of_stl10_is_one_line_with_what_to_download(tmp_path, change, said):
    change(tmp_path / "stl10_binary")
    with pytest.raises(DataProblem) as error:
        sources.load("stl10", tmp_path, 2021)
    line = str(error.value)
    assert said in line
    assert "get stl10_binary.tar.gz from the data set's own page" in line
    assert f"so that {tmp_path / 'stl10_binary'} holds train_X.bin, train_y.bin" in line
    assert "\n" not in line


@pytest.fixture
def tiny_imagenet(tmp_path) -> Path:
    """The published layout: two training images of each of three classes, and four validation images in a list."""
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(WNIDS):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
        for image in range(2):
            Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(folder / f"{name}_{image}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number, label in enumerate((2, 0, 1, 2)):
        Image.new("L", (64, 64), 10 * number).save(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    return root


def test_tiny_imagenet_reads_the_classes_of_val_from_its_list(tiny_imagenet):
    source = sources.load("tinyimagenet", tiny_imagenet.parent, 2021)
    assert source.classes == WNIDS
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [2, 0, 1, 2]
    assert source.train.pixels.shape == (6, 3, 64, 64)
    assert source.test.pixels[:].float().mean((1, 2, 3)).tolist() == pytest.approx([0, 10, 20, 30], abs=1)
    small = sources.load("tinyimagenet", tiny_imagenet.parent, 2021, Sizing(32))
    assert small.test.pixels.shape == (4, 3, 32, 32)


def test_validation_images_may_have_been_sorted_into_classes(tiny_imagenet):
    (tiny_imagenet / "val" / "val_annotations.txt").unlink()
    for number, name in enumerate(WNIDS):
        (tiny_imagenet / "val" / name).mkdir()
        (tiny_imagenet / "val" / "images" / f"val_{number}.JPEG").rename(tiny_imagenet / "val" / name / "x.JPEG")
    (tiny_imagenet / "val" / "images" / "val_3.JPEG").unlink()
    (tiny_imagenet / "val" / "images").rmdir()
    moved = tiny_imagenet.parent / "tinyimagenet"
    tiny_imagenet.rename(moved)
    assert sources.load("tinyimagenet", moved.parent, 2021).test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: root.rename(root.parent / "elsewhere"), "tiny-imagenet-200/train is missing"),
        (lambda root: (root / "val").rename(root / "x"), "tiny-imagenet-200/val is missing"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn9\n"), "names no class of train"),
        (lambda root: (root / "val" / "images" / "val_1.JPEG").unlink(), "line 2 of "),
        (lambda root: (root / "val" / "val_annotations.txt").write_text(""), "val_annotations.txt is empty"),
    ],
)
def test_what_is_missing_of_tiny_imagenet_is_one_line_with_what_to_download(tiny_imagenet, change, said):
    change(tiny_imagenet)
    with pytest.raises(DataProblem) as error:
        sources.load("tinyimagenet", tiny_imagenet.parent, 2021)
    line = str(error.value)
    assert said in line
    assert f"get tiny-imagenet-200.zip from cs231n.stanford.edu and unpack it in {tiny_imagenet.parent}" in line
    assert "\n" not in line


def test_what_may_stay_on_disk_is_no_part_of_a_selection_of_classes():
    assert names.selection("stl10:0-2+digits") == [("stl10", ["0", "1", "2"]), ("digits", [])]
    with pytest.raises(DataProblem, match="tinyimagenet cannot be a part of a selection"):
        names.selection("tinyimagenet:0-2")
