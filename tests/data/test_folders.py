"""Image folders as people have them: one case for each kind of thing that lies in them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import digest, sources
from deeppatch.data.files import BACKGROUND, Files, open_rgb, to_rgb
from deeppatch.data.folders import endings, list_classes, list_files, ordered
from deeppatch.data.images import Images
from deeppatch.data.reading import to_images
from deeppatch.data.scaling import Scaling, Sizing, square
from deeppatch.data.splits import hold_out, split, subset
from deeppatch.data.unlabelled import read_unlabelled
from deeppatch.errors import DataProblem

CLASSES = ("ant", "bee")
PARTS = ["train", "test", "pool"]


def picture(seed: int, mode: str = "RGB", width: int = 32, height: int = 32) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode) if mode != "P" else 3), np.uint8)
    return Image.fromarray(values[..., 0] if mode == "L" else values).convert(mode)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes with three images in each part, and a pool of three."""
    for part in ("train", "test"):
        for place, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                picture(10 * place + number).save(tmp_path / part / name / f"{number}.png")
    (tmp_path / "pool" / "ant").mkdir(parents=True)
    for number in range(3):
        picture(50 + number).save(tmp_path / "pool" / "ant" / f"{number}.png")
    return tmp_path


def pixels_of(root: Path, part: str) -> torch.Tensor:
    if part == "pool":
        return read_unlabelled(root / "pool", square(32, squash=True))[1]
    return getattr(sources.load(f"folder:{root}", root, 2021, Sizing(32, squash=True)), part).pixels


def problem(call, *arguments) -> str:
    with pytest.raises(DataProblem) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what lies in a folder and is no image of it


def hide(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._0.png").write_bytes(b"resource fork")
    for name in (".cache", "__MACOSX"):
        (folder / name / "ant").mkdir(parents=True)
        (folder / name / "ant" / "0.png").write_bytes(b"no image")
        (folder / name / "0.png").write_bytes(b"no image")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/null")


def loop(folder: Path) -> None:
    (folder / "up").symlink_to(folder.parent)
    (folder / "self").symlink_to(folder)
    (folder / "parent").symlink_to("..")


def twice(folder: Path) -> None:
    (folder / "nested").mkdir()
    (folder / "again").symlink_to("nested")
    (folder / "once more").symlink_to("again")


@pytest.mark.parametrize("kind", [hide, fifo, loop, twice])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_no_image_is_passed_over(root, kind, part):
    before = pixels_of(root, part)
    kind(root / part / "ant")
    if kind is hide:
        kind(root / part)
        kind(root)
    elif kind is loop:
        (root / part / "up").symlink_to(root)
        (root / part / "self").symlink_to(root / part)
    assert torch.equal(pixels_of(root, part), before)


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_that_is_linked_to_is_read_once(root, tmp_path_factory, part):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(99).save(elsewhere / "z.png")
    (root / part / "ant" / "link").symlink_to(elsewhere)
    (root / part / "ant" / "link2").symlink_to(elsewhere)
    before = 3 if part == "pool" else 6
    assert len(pixels_of(root, part)) == before + 1


@pytest.mark.parametrize("part", PARTS)
def test_other_endings_are_read_if_pillow_can_and_counted_if_not(root, part, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    folder = root / part / "ant"
    for ending, kind in ((".gif", "GIF"), (".jfif", "JPEG"), (".JPE", "JPEG"), (".avif", "AVIF"), (".tga", "TGA")):
        picture(7).save(folder / f"x{ending}", kind)
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (folder / name).write_bytes(b"x")
    found = len(pixels_of(root, part))
    assert found == (3 if part == "pool" else 6) + 5
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if "passed over" in line]
    assert line.endswith(
        "4 files that Pillow does not read as images are passed over: .heic (2), .txt (1), no ending (1)"
    )
    assert ".heic" not in endings()


@pytest.mark.parametrize("part", PARTS)
def test_all_unreadable_images_are_named_at_once(root, part):
    folder = root / part / "ant"
    (folder / "a.png").write_bytes(b"no image")
    (folder / "b.jpg").write_bytes(b"")
    (folder / "c.png").symlink_to("nowhere")
    (folder / "d.png").symlink_to("d.png")
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(folder / "e.png")
    content = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(content[: len(content) // 2])
    message = problem(pixels_of, root, part)
    assert message.startswith("6 images cannot be read; replace or delete them: ")
    assert all(f"{folder / name} (is no readable image)" in message for name in ("0.png", "a.png", "b.jpg", "c.png"))
    assert f"{folder / 'd.png'} (is no readable image)" in message
    assert f"{folder / 'e.png'} (has more than 8 bits a channel)" in message


def test_unreadable_images_of_both_parts_are_named_together(root):
    for part in ("train", "test"):
        (root / part / "bee" / "x.png").write_bytes(b"no image")
    message = problem(pixels_of, root, "train")
    assert message.startswith("2 images cannot be read")
    assert str(root / "test" / "bee" / "x.png") in message


def test_files_that_stay_on_disk_name_all_of_a_batch(root):
    listing = list_classes(root / "train")
    for path in listing.paths[:2]:
        Path(path).write_bytes(b"")
    assert problem(lambda: Files(listing.paths, Scaling(8, 8, shorter=8))[:]).startswith("2 images cannot be read")


# --- pixels


def turned(path: Path, tag: int, kind: str) -> np.ndarray:
    image = picture(3, width=24, height=16)
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(path, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return np.asarray(image)


TURNS = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", TURNS)
def test_images_are_turned_as_their_exif_tag_says(tmp_path, tag, kind):
    path = tmp_path / f"x.{kind.lower()}"
    values = turned(path, tag, kind)
    assert np.array_equal(np.asarray(open_rgb(path)), TURNS[tag](values))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_turned(root, part):
    values = turned(root / part / "ant" / "0.png", 6, "PNG")
    upright = Image.fromarray(np.ascontiguousarray(np.rot90(values, -1))).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels_of(root, part)[0].permute(1, 2, 0), np.asarray(upright))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_tags_that_cannot_be_read_turn_nothing(tmp_path, exif):
    picture(3).save(tmp_path / "x.png", exif=exif)
    picture(3).save(tmp_path / "y.png")
    assert open_rgb(tmp_path / "x.png").tobytes() == open_rgb(tmp_path / "y.png").tobytes()


def test_transparency_is_composited_over_white(tmp_path):
    assert BACKGROUND == (255, 255, 255)
    values = np.asarray(picture(4, "RGBA")).copy()
    values[:8, :, 3], values[8:16, :, 3] = 0, 255
    Image.fromarray(values).save(tmp_path / "x.png")
    found = np.asarray(open_rgb(tmp_path / "x.png")).astype(float)
    alpha = values[..., 3:] / 255
    assert np.abs(found - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    assert (found[:8] == 255).all()
    assert np.array_equal(found[8:16], values[8:16, :, :3])


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "1"])
def test_every_form_of_transparency_counts(tmp_path, mode):
    if mode == "LA":
        image = Image.merge("LA", (picture(1, "L"), Image.new("L", (32, 32), 0)))
        image.save(tmp_path / "x.png")
    else:
        image = Image.new(mode, (32, 32), 0)
        image.save(tmp_path / "x.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert open_rgb(tmp_path / "x.png").getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("kind", ["png", "gif", "jpg", "webp", "tif"])
def test_opaque_images_without_a_tag_are_converted_as_before(tmp_path, mode, kind):
    image = picture(6, "RGB").convert(mode)
    try:
        image.save(tmp_path / f"x.{kind}")
    except (OSError, KeyError, ValueError):
        pytest.skip("this format has no such mode")
    with Image.open(tmp_path / f"x.{kind}") as again:
        want = again.convert("RGB").tobytes()
    assert open_rgb(tmp_path / f"x.{kind}").tobytes() == want


def test_images_of_a_torch_dataset_are_converted_in_the_same_way():
    image = picture(4, "RGBA")
    found = to_images(Pairs(image), "data").pixels
    assert np.array_equal(found[0].permute(1, 2, 0), np.asarray(to_rgb(image)))


class Pairs(torch.utils.data.Dataset):
    def __init__(self, image):
        self.image = image

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.image, index


# --- classes


def test_numeric_class_names_are_ordered_as_numbers(root):
    for part in ("train", "test"):
        for place, name in enumerate(("10", "9", "1", "02")):
            (root / part / name).mkdir()
            picture(place).save(root / part / name / "0.png")
        for name in CLASSES:
            for file in (root / part / name).iterdir():
                file.unlink()
            (root / part / name).rmdir()
    source = sources.load(f"folder:{root}", root, 2021, Sizing(32))
    assert source.classes == ("1", "02", "9", "10")
    assert source.train.labels.tolist() == [0, 1, 2, 3]
    assert np.array_equal(source.train.pixels[3].permute(1, 2, 0), np.asarray(picture(0)))
    assert ordered(["2", "10", "x"]) == ["10", "2", "x"]
    assert ordered(["٣", "10"]) == ["10", "٣"]


def test_another_order_of_the_same_classes_is_said():
    before = {"classes": ["1", "10", "2"], "image_size": [3, 8, 8], "parts": {}}
    now = {"classes": ["1", "2", "10"], "image_size": [3, 8, 8], "parts": {}}
    assert list(digest.differences(before, now)) == ["classes 1, 10, 2 then, 1, 2, 10 now (the same in another order)"]


def test_a_single_class_is_named_with_its_count(root):
    for part in ("train", "test"):
        (root / part / "bee").rename(root / f"bee {part}")
    message = problem(pixels_of, root, "train")
    assert message == f"{root / 'train'} has a single class, ant, with 3 images; a classifier needs at least two"


def test_a_class_of_one_is_named_with_its_count(root):
    for number in (1, 2):
        (root / "train" / "bee" / f"{number}.png").unlink()
    source = sources.load(f"folder:{root}", root, 2021, Sizing(32))
    message = problem(split, source, 2021)
    assert message == (
        f"{source.name}: class bee (1) of 4 images; a class-stratified split needs at least 2 of every class: add "
        "images or remove it"
    )


def test_classes_too_small_for_val_are_named_with_their_counts(caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    labels = torch.tensor([0] * 200 + [1] * 2 + [2] * 100)
    images = Images(torch.zeros(302, 3, 2, 2, dtype=torch.uint8), labels)
    kept, held_out = hold_out(images, 0.05, 1, "mine", ["a", "rare", "c"])
    assert set(held_out.labels.tolist()) == {0, 2}
    assert "mine: val has no image of the smallest classes: class rare (2) of 302 images" in caplog.text
    assert problem(subset, images, 2, 1, "mine").startswith("mine: 2 of 302 images cannot hold every class")


# --- names of files


def test_file_names_that_are_not_utf8_work_where_they_are_not_shown(root):
    raw = os.fsencode(root / "train" / "ant")
    (root / "train" / "ant" / "0.png").rename(os.fsdecode(raw + b"/r\xe9.png"))
    source = sources.load(f"folder:{root}", root, 2021, Sizing(32))
    assert len(source.train) == 6
    files = Files(list_classes(root / "train").paths, Scaling(8, 8, shorter=8))
    assert len(files.digest()) == 64
    part = Images(files, torch.zeros(6, dtype=torch.long))
    assert digest.describe({"train": part}, CLASSES)["parts"]["train"]["images"] == 6
    Path(os.fsdecode(raw + b"/r\xe9.png")).write_bytes(b"")
    assert "r\\xe9.png is no readable image" in problem(pixels_of, root, "train")


def test_file_names_that_are_not_utf8_are_named_where_they_must_be_shown(root):
    picture(1).save(os.fsdecode(os.fsencode(root / "pool") + b"/r\xe9.png"), "PNG")
    assert "names are not UTF-8, so that no table of labels can hold them: r\\xe9.png" in problem(
        read_unlabelled, root / "pool", 32
    )
    os.mkdir(os.fsencode(root / "train") + b"/r\xe9")  # noqa: PTH102
    assert "names of classes are not UTF-8: r\\xe9; rename these folders" in problem(pixels_of, root, "train")


def test_the_order_is_that_of_torchvision(root):
    from torchvision.datasets import ImageFolder

    for name in ("b/z.png", "a/y.png", "a.png", "a b/c.png", "a-b/c.PNG"):
        (root / "train" / "ant" / name).parent.mkdir(exist_ok=True)
        picture(1).save(root / "train" / "ant" / name)
    listing = list_classes(root / "train")
    assert list(zip(listing.paths, listing.labels, strict=True)) == ImageFolder(str(root / "train")).samples


def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch):
    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert problem(list_files, root, Counter()).startswith(f"{root}: Permission denied; check")
