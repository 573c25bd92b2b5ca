"""ImageNet's own layout, in miniature: what is listed, how it splits, and what to put where when it is not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import sources, views
from deeppatch.data.files import Files
from deeppatch.data.splits import split
from deeppatch.errors import DataProblem

CLASSES = ("n01440764", "n01443537", "n02119789")
TRAIN, VAL = 10, 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder imagenet/ILSVRC with ten training and four validation images of each of three classes."""
    draw = np.random.default_rng(1)
    for part, each in (("train", TRAIN), ("val", VAL)):
        for name in CLASSES:
            folder = tmp_path / "imagenet" / "ILSVRC" / part / name
            folder.mkdir(parents=True)
            for number in range(each):
                height, width = draw.integers(20, 60, 2)
                values = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(values).save(folder / f"{name}_{number}.JPEG")
    return tmp_path / "imagenet" / "ILSVRC"


def load(root: Path) -> sources.Source:
    return sources.load("imagenet", root.parents[1], 2021)


def test_training_and_validation_images_are_listed_by_class(root):
    source = load(root)
    assert (source.name, source.classes, source.augment) == ("imagenet", CLASSES, True)
    for part, folder, each in ((source.train, "train", TRAIN), (source.test, "val", VAL)):
        assert isinstance(part.pixels, Files)
        assert part.pixels.shape == (3 * each, 3, 224, 224)
        assert part.labels.tolist() == [0] * each + [1] * each + [2] * each
        assert part.labels.dtype == torch.int64
        want = [str(root / folder / name / f"{name}_{number}.JPEG") for name in CLASSES for number in range(each)]
        assert part.pixels.paths == want


@pytest.mark.parametrize("part", ["train", "val"])
def test_what_lies_beside_the_images_is_passed_over(root, part):
    before = load(root)
    folder = root / part / CLASSES[0]
    for hidden in (root / part / "__MACOSX", root / part / ".cache", folder / "__MACOSX"):
        hidden.mkdir()
        (hidden / "x.JPEG").write_bytes(b"no image")
    (folder / "._x.JPEG").write_bytes(b"resource fork")
    os.mkfifo(folder / "pipe.JPEG")
    (folder / "up").symlink_to(root)
    (root / part / "up").symlink_to(root / part)
    after = load(root)
    assert after.classes == CLASSES
    assert after.train.pixels.paths == before.train.pixels.paths
    assert after.test.pixels.paths == before.test.pixels.paths


@pytest.mark.parametrize("tag", [1, 6])
def test_images_are_turned_and_transparency_is_composited(root, tag):
    path = load(root).test.pixels.paths[0]
    exif = Image.Exif()
    exif[0x0112] = tag
    values = np.zeros((40, 60, 4), np.uint8)
    values[:, :30] = (10, 20, 30, 255)
    Image.fromarray(values).save(path, "PNG", exif=exif)
    found = load(root).test.pixels[:1][0]
    first, last = (found[:, 100, 0], found[:, 100, -1]) if tag == 1 else (found[:, 0, 100], found[:, -1, 100])
    assert first.tolist() == [10, 20, 30]
    assert last.tolist() == [255, 255, 255]


def test_an_image_is_scaled_to_256_pixels_and_its_centre_is_cut(root):
    source = load(root)
    found = source.test.pixels[torch.tensor([5])][0]
    with Image.open(source.test.pixels.paths[5]) as image:
        width, height = image.size
        size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
        scaled = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in size)
    want = np.asarray(scaled.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), want)


def test_nothing_is_read_before_it_is_asked_for(root):
    damaged = root / "train" / CLASSES[1] / f"{CLASSES[1]}_3.JPEG"
    damaged.write_bytes(b"no image")
    source = load(root)
    with pytest.raises(DataProblem, match=f"{damaged} is no readable image"):
        source.train.pixels[10:14]


@pytest.mark.parametrize("limit", [None, 3])
def test_it_splits_like_any_other_data(root, limit):
    source = load(root)
    parts = split(source, 2021, limit)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == ([24, 6, 12] if limit is None else [3] * 3)
    for part in (parts.train, parts.val, parts.test):
        assert torch.bincount(part.labels).tolist() == [len(part) // 3] * 3
        assert [Path(path).parent.name for path in part.pixels.paths] == [CLASSES[label] for label in part.labels]
    assert set(parts.train.pixels.paths).isdisjoint(parts.val.pixels.paths)
    (batch,) = views.clean(parts.val, 8)
    assert batch[0].shape == (len(parts.val), 3, 224, 224)
    assert batch[0].std() > 0.05


# --- what is not there


def problem(root: Path) -> str:
    with pytest.raises(DataProblem) as error:
        load(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def flatten(folder: Path) -> None:
    """What the archive of validation images unpacks to: no folders of classes."""
    for file in list(folder.glob("*/*")):
        file.rename(folder / file.name)
    for name in CLASSES:
        (folder / name).rmdir()


def in_place_of(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("an archive")


def emptied(folder: Path) -> None:
    for file in (folder / CLASSES[1]).iterdir():
        file.unlink()


PROBLEMS = {
    "missing": (shutil.rmtree, "{} is missing"),
    "a file": (in_place_of, "{} is missing"),
    "no class folders": (flatten, "Couldn't find any class folder in {};"),
    "an empty class": (emptied, f"Found no valid file for the classes {CLASSES[1]}."),
}


@pytest.mark.parametrize(("harm", "complaint"), PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_that_is_not_there_is_named_with_what_to_put_where(root, part, harm, complaint):
    harm(root / part)
    message = problem(root)
    assert message.startswith("imagenet: " + complaint.format(root / part))
    assert "image-net.org" in message
    assert f"{root}/{{train,val}}/n01440764/IMAGE.JPEG, one folder a class in both" in message


def test_without_anything_the_training_images_are_asked_for(tmp_path):
    root = tmp_path / "new" / "imagenet" / "ILSVRC"
    assert problem(root).startswith(f"imagenet: {root / 'train'} is missing")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("part", ["train", "val"])
def test_classes_that_differ_are_named(root, part):
    shutil.rmtree(root / part / CLASSES[2])
    assert problem(root) == (f"{root}: train and val name different classes ({CLASSES[2]}); give both the same")
