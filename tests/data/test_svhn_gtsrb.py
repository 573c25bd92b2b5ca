from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import GTSRB, SVHN

from deeppatch.data import biased_split, sources
from deeppatch.errors import DataProblem


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """SVHN's two files with a few images of noise: ten is how it writes a zero."""
    draw = np.random.default_rng(0)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda _self: True)
    (tmp_path / "svhn").mkdir()
    stored = {}
    for name, count in (("train", 7), ("test", 4)):
        stored[name] = draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(4, 4 + count, dtype=np.uint8)[:, None]
        savemat(tmp_path / "svhn" / f"{name}_32x32.mat", {"X": stored[name], "y": labels})
    return tmp_path, stored


@pytest.fixture
def signs(tmp_path):
    """GTSRB as it is unpacked, with two signs of odd sizes."""
    root = tmp_path / "gtsrb"
    draw = np.random.default_rng(1)
    for label in (0, 1):
        folder = root / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (40, 51, 3), dtype=np.uint8)).save(folder / "00000_00000.ppm")
    (root / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(root / "GTSRB" / "Final_Test" / "Images" / "00000.ppm")
    (root / "GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n00000.ppm;64;64;17\n")
    return tmp_path


def test_svhn_is_read_in_its_order_and_ten_is_a_zero(numbers):
    folder, stored = numbers
    source = sources.load("svhn", folder, 2021)
    assert source.train.labels.tolist() == [4, 5, 6, 7, 8, 9, 0]
    assert (len(source.test), source.classes) == (4, tuple("0123456789"))
    assert source.train.pixels.dtype == torch.uint8
    assert torch.equal(source.train.pixels[3], torch.from_numpy(stored["train"][..., 3]).permute(2, 0, 1))
    assert (source.augment, source.mirror) == (True, False), "a mirrored number is no number"


def test_gtsrb_is_resized_and_never_mirrored(signs):
    source = sources.load("gtsrb", signs, 2021)
    assert source.train.pixels.shape == (2, 3, 32, 32)
    assert source.train.labels.tolist() == [0, 1]
    assert source.test.labels.tolist() == [17]
    assert (source.test.pixels == 90).all()
    assert (len(source.classes), source.mirror) == (43, False)


def numbered(folder, names) -> None:
    """Two training images and a test image of each class, grey as its number says."""
    for part, count in (("train", 2), ("test", 1)):
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for each in range(count):
                Image.new("RGB", (32, 32), (5 * int(name),) * 3).save(folder / part / name / f"{each}.png")


@pytest.mark.parametrize(("name", "classes", "width"), [("svhn", 10, 1), ("gtsrb", 43, 1), ("gtsrb", 43, 5)])
def test_an_image_folder_in_their_place_is_cut_alike_and_never_mirrored(tmp_path, monkeypatch, name, classes, width):
    numbered(tmp_path / name, [f"{label:0{width}}" for label in range(classes)])
    source = sources.load(name, tmp_path, 2021)
    assert (source.name, source.augment, source.mirror) == (name, True, False)
    assert [int(each) for each in source.classes] == list(range(classes)), "10 comes after 9, as class weights have it"
    for part, count in ((source.train, 2), (source.test, 1)):
        assert torch.equal(part.pixels[:, 0, 0, 0], (5 * part.labels).to(torch.uint8))
        assert torch.bincount(part.labels).tolist() == [count] * classes
    monkeypatch.setitem(biased_split.SIZES, name, (8, 6, 4))
    parts = biased_split.partition(source, "A", 2021)
    drawn = [
        int(share * size) for share, size in zip(biased_split.DRAWN_SHARES.get(name, (0.75, 0.75)), (8, 6), strict=True)
    ]
    assert [len(parts.train), len(parts.val), len(parts.test)] == [*drawn, 4]
    assert parts.order == "seeded permutation", "folders are sorted by class"


def test_the_first_digits_may_come_from_an_image_folder(tmp_path):
    numbered(tmp_path / "svhn", "0123456789")
    source = sources.load("svhn_5", tmp_path, 2021)
    assert (source.classes, source.mirror, len(source.train)) == (tuple("01234"), False, 10)


@pytest.mark.parametrize("names", ["012", "0123456789a"])
def test_a_folder_with_other_classes_is_told_which_they_are(tmp_path, names):
    numbered(tmp_path / "svhn", "012")
    for part in ("train", "test"):
        for name in names[3:]:
            (tmp_path / "svhn" / part / name).mkdir()
            Image.new("RGB", (32, 32)).save(tmp_path / "svhn" / part / name / "0.png")
    with pytest.raises(DataProblem) as error:
        sources.load("svhn", tmp_path, 2021)
    assert str(error.value) == (
        f"{tmp_path / 'svhn'}: svhn has 10 classes; call their folders 0 to 9, all in both parts"
    )


@pytest.mark.parametrize(("name", "kind"), [("svhn", SVHN), ("gtsrb", GTSRB)])
def test_absent_files_are_one_line_when_they_cannot_be_fetched(tmp_path, monkeypatch, name, kind):
    def refuse(_self):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(kind, "download", refuse)
    with pytest.raises(
        DataProblem, match=rf"{name}: the files in .*no route to host.*put .*there, or an image folder"
    ) as error:
        sources.load(name, tmp_path, 2021)
    assert "\n" not in str(error.value)
