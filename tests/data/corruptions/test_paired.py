from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import sources, views
from deeppatch.data.corruptions import (
    CleanImages,
    PairedCorruption,
    own_folder,
    paired_folder,
    released,
    released_files,
)
from deeppatch.data.images import Images, to_float
from deeppatch.errors import DataProblem, UserError

COUNT = 12


@pytest.fixture
def clean() -> Images:
    draw = torch.Generator().manual_seed(1)
    return Images(torch.randint(0, 256, (COUNT, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.arange(COUNT) % 3)


@pytest.fixture
def archive(tmp_path, clean):
    """Two types in the form of CIFAR-10-C: value 10 s + image for fog, and the negative image for snow."""
    fog = np.zeros((5 * COUNT, 8, 8, 3), np.uint8)
    for severity in range(1, 6):
        for index in range(COUNT):
            fog[(severity - 1) * COUNT + index] = 10 * severity + index
    np.save(tmp_path / "fog.npy", fog)
    np.save(tmp_path / "snow.npy", np.tile(255 - clean.pixels.permute(0, 2, 3, 1).numpy(), (5, 1, 1, 1)))
    np.save(tmp_path / "labels.npy", np.tile(clean.labels.numpy(), 5))
    return tmp_path


def test_released_images_are_those_of_the_clean_ones_in_any_order(archive, clean):
    found = released(archive, clean, severities=(2, 5))
    assert found.level_names == ("snow-2", "snow-5", "fog-2", "fog-5")
    order = torch.tensor([7, 3, 0, 11])
    pixels = clean.pixels[order] / 255
    degraded = found(pixels, torch.tensor([3, 4, 0, 1])) * 255
    assert degraded[0].unique().tolist() == [27]
    assert degraded[1].unique().tolist() == [53]
    assert torch.equal(degraded[2], pixels[2] * 255)
    torch.testing.assert_close(degraded[3], 255.0 - clean.pixels[11])
    view = views.levels_view(clean.take(order), found, [0, 4], 3)
    assert [round(value * 255) for batch, _ in view for value in batch[:, 0, 0, 0].tolist()][4:] == [57, 53, 50, 61]


def test_images_without_a_degraded_version_are_refused(archive, clean):
    found = released(archive, clean, names=["fog"])
    with pytest.raises(DataProblem, match="1 of 2 images have no degraded version in fog-1"):
        found(torch.stack([clean.pixels[0], clean.pixels[0].flip(2)]) / 255, 1)


def test_files_of_another_data_set_are_refused(archive, clean):
    with pytest.raises(DataProblem, match=r"labels.npy holds other labels"):
        released(archive, Images(clean.pixels, clean.labels.flip(0)))
    with pytest.raises(DataProblem, match="labels.npy holds int64"):
        released(archive, clean.take(torch.arange(5)))
    with pytest.raises(UserError, match="hail: no released type"):
        released(archive, clean, names=["hail"])
    with pytest.raises(DataProblem, match="frost.npy is missing"):
        released(archive, clean, names=["frost"])
    (archive / "fog.npy").write_bytes(b"\x93NUMPY half")
    with pytest.raises(DataProblem, match="fog.npy is damaged"):
        released(archive, clean, names=["fog"])
    with pytest.raises(DataProblem, match="unpack CIFAR-10-C"):
        released(archive / "elsewhere", clean)


def test_one_s_own_images_are_paired_by_name(tmp_path, clean):
    names = [f"{'abc'[index % 3]}/{index}.png" for index in range(COUNT)]
    for index, name in enumerate(names):
        file = tmp_path / "rain" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 2 * index, 100)).save(file.with_suffix(".bmp"))
    found = paired_folder(tmp_path / "rain", clean, names)
    assert found.level_names == ("rain",)
    degraded = found(clean.pixels[[4, 9]] / 255, 1) * 255
    assert degraded[:, :, 3, 3].round().tolist() == [[4, 8, 100], [9, 18, 100]]
    with pytest.raises(DataProblem, match="1 of 13 images have no degraded version of their name, such as a/99.png"):
        paired_folder(tmp_path / "rain", clean, [*names, "a/99.png"])
    with pytest.raises(DataProblem, match="is missing"):
        paired_folder(tmp_path / "hail", clean, names)


def write_grey(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(file)


def test_images_of_one_name_are_told_apart_by_folder_and_ending(tmp_path, clean):
    names = ["a/day1/0.png", "a/day2/0.png", "b/0.png", "b/0.bmp", "c/1.png"]
    clean = clean.take(torch.arange(len(names)))
    for value, name in enumerate(names):
        write_grey(tmp_path / "rain" / name, 10 * value)
    (tmp_path / "rain/c/1.png").rename(tmp_path / "rain/c/1.bmp")
    degraded = paired_folder(tmp_path / "rain", clean, names)(clean.pixels / 255, 1) * 255
    assert degraded[:, 0, 0, 0].round().tolist() == [0, 10, 20, 30, 40]
    (tmp_path / "rain/b/0.bmp").rename(tmp_path / "rain/b/0.tif")
    with pytest.raises(DataProblem, match="1 of 5 images have no degraded version of their name, such as b/0.bmp"):
        paired_folder(tmp_path / "rain", clean, names)


@pytest.mark.parametrize("doubt", [False, True])
def test_an_image_folder_is_paired_only_where_no_name_leaves_a_doubt(tmp_path, doubt):
    for number, part in enumerate(("train", "test")):
        for label in ("a", "b"):
            for index, name in enumerate(("day1/0.png", "day2/0.png", "1.png", "1.bmp")):
                value = 100 * number + 10 * index + (label == "b")
                write_grey(tmp_path / "dry" / part / label / name, value)
                write_grey(tmp_path / "wet" / part / label / name, value + 100)
    if doubt:
        (tmp_path / "wet/test/a/1.bmp").rename(tmp_path / "wet/test/a/1.tif")
    source = sources.load(f"folder:{tmp_path / 'dry'}", tmp_path, 1)
    parts = {"train": source.train, "val": source.train, "test": source.test}
    names = sources.image_names(f"folder:{tmp_path / 'dry'}", tmp_path)
    clean = CleanImages(parts, source.classes, (source.train, source.test), names, val_share=0.25)
    found = own_folder(tmp_path / "wet", clean)
    assert isinstance(found, PairedCorruption) != doubt
    if not doubt:
        for images in (source.train, source.test):
            pixels = to_float(images.pixels)
            assert torch.equal((found(pixels, 1) * 255).round(), images.pixels + 100.0)


def test_images_of_imagenet_c_are_read_as_they_are(tmp_path):
    file = tmp_path / "fog" / "3" / "n01440764" / "ILSVRC2012_val_1.JPEG"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (224, 224), (7, 80, 200)).save(file, quality=95)
    found = released_files(tmp_path, 3, "fog", ["n01440764/ILSVRC2012_val_1.JPEG"])
    assert found.shape == (1, 3, 224, 224)
    assert torch.equal(
        found[torch.tensor([0])][0], torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    )
    with pytest.raises(DataProblem, match="unpack ImageNet-C"):
        released_files(tmp_path, 4, "fog", ["n01440764/ILSVRC2012_val_1.JPEG"])
