"""Decoded images in a mapped file: they are those of the files, decoded once, and read without taking memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import mapped
from deeppatch.data.digest import describe
from deeppatch.data.files import Files
from deeppatch.data.images import Images
from deeppatch.data.mapped import Mapped, decoded
from deeppatch.data.scaling import Scaling, Sizing, square
from deeppatch.data.sources import load
from deeppatch.errors import DataProblem


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        values = np.random.default_rng(index).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index:02}.png")
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture
def small(monkeypatch):
    """Let a few images count as a large set, decoded in several chunks."""
    monkeypatch.setattr(mapped, "LARGE", 100)
    monkeypatch.setattr(mapped, "CHUNK", 5)


def test_the_pixels_are_those_of_the_files(paths, tmp_path, small):
    files = Files(paths, square(8))
    found = decoded(files, tmp_path / "cache")
    assert isinstance(found, Mapped)
    assert found.shape == files.shape
    assert torch.equal(found[:], files[:])
    index = torch.tensor([7, 0, 7])
    assert torch.equal(found[index], files[index])
    assert torch.equal(found.take(index)[1:], files.take(index)[1:])
    assert torch.equal(found.take(index).take(torch.tensor([1]))[:], files.take(torch.tensor([0]))[:])
    assert found.to(torch.device("meta"))[index].is_meta


def test_images_are_decoded_once_for_each_content_and_scaling(paths, tmp_path, small, monkeypatch):
    cache, read = tmp_path / "cache", []
    decode = Files.decode
    monkeypatch.setattr(Files, "decode", lambda self, path: read.append(path) or decode(self, path))
    first = decoded(Files(paths, square(8)), cache)
    assert len(read) == 12
    for path in paths:
        os.utime(path, (1, 1))  # another time, the same content
    assert decoded(Files(paths, square(8)), cache).digest() == first.digest()
    assert len(read) == 12
    others = [decoded(Files(paths, square(8, squash=True)), cache), decoded(Files(paths[:-1], square(8)), cache)]
    Image.new("RGB", (9, 13)).save(paths[3])
    others.append(decoded(Files(paths, square(8)), cache))
    assert len({each.digest() for each in (first, *others)}) == 4
    assert sorted(path.suffix for path in cache.glob("pixels-*")) == [".npy"] * 4
    assert not list(cache.glob(".*partial"))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"junk" * 100, "cut", "other"])
def test_a_file_that_was_cut_or_is_another_one_is_decoded_again(paths, tmp_path, small, content):
    files, cache = Files(paths, square(8)), tmp_path / "cache"
    path = decoded(files, cache).path
    if content == "other":
        np.save(path, np.zeros((12, 3, 8, 9), dtype=np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:-9] if content == "cut" else content)
    assert torch.equal(decoded(files, cache)[:], files[:])


def test_few_images_and_those_without_a_cache_are_in_memory(paths, tmp_path, small):
    assert isinstance(decoded(Files(paths, square(8)), None), torch.Tensor)
    assert isinstance(decoded(Files(paths[:1], square(5)), tmp_path), torch.Tensor)


def test_all_unreadable_images_are_named_and_nothing_is_left(paths, tmp_path, small):
    for index in (1, 11):  # in two chunks
        Path(paths[index]).write_bytes(b"no image")
    with pytest.raises(DataProblem, match=r"2 images cannot be read.*01\.png.*11\.png"):
        decoded(Files(paths, square(8)), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*pixels*"))


def test_no_space_is_one_line_and_nothing_is_left(paths, tmp_path, small, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataProblem, match="has no room for 0.0 GiB of decoded images; free some"):
        decoded(Files(paths, square(8)), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*pixels*"))


def test_a_digest_says_which_images_these_are(paths, tmp_path, small):
    found = decoded(Files(paths, square(8)), tmp_path / "cache")
    labels = torch.arange(12) % 2
    whole, half = Images(found, labels), Images(found, labels).take(torch.arange(6))
    described = describe({"train": whole, "test": half}, ("a", "b"))
    assert described["image_size"] == [3, 8, 8]
    assert described["parts"]["train"]["digest"] != described["parts"]["test"]["digest"]
    again = describe({"test": whole.take(torch.arange(6))}, ("a", "b"))
    assert again["parts"]["test"] == described["parts"]["test"]


def folder(root: Path, count: int, size: int) -> Path:
    """Make an image folder of two classes, with `count` JPEG files a class and part."""
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            place = root / part / label
            place.mkdir(parents=True)
            for index in range(count):
                values = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
                image.save(place / f"{index}.jpg", quality=80)
    return root


def test_a_folder_is_read_from_the_mapped_file(tmp_path, small):
    root = folder(tmp_path / "pets", 5, 20)
    source = load(f"folder:{root}", tmp_path, 1, Sizing(12, cache=tmp_path / "cache"))
    plain = load(f"folder:{root}", tmp_path, 1, Sizing(12))
    assert isinstance(source.train.pixels, Mapped)
    for part in ("train", "test"):
        assert torch.equal(getattr(source, part).pixels[:], getattr(plain, part).pixels)
        assert torch.equal(getattr(source, part).labels, getattr(plain, part).labels)


MEMORY = """
import sys
from pathlib import Path
import torch
from deeppatch.data.dataset import load_data
from deeppatch.data import views


def private():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) // 1024


before = private()
data = load_data(f"folder:{sys.argv[1]}", image_size=224, cache=sys.argv[2])
seen = 0
for pixels, _ in views.Shuffled(data.train, 64, 1, 0):
    seen += len(pixels)
    if seen >= 3000:
        break
print(len(data.train) + len(data.val) + len(data.test), private() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_10_000_images_of_224_pixels_take_less_than_half_their_bytes_of_private_memory(tmp_path):
    root = folder(tmp_path / "pets", 1, 224)
    for part, count in (("train", 4500), ("test", 500)):
        for label in ("cat", "dog"):
            for index in range(1, count):
                os.link(root / part / label / "0.jpg", root / part / label / f"{index}.jpg")
    src = Path(__file__).resolve().parents[2] / "src"
    command = [sys.executable, "-c", MEMORY, str(root), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=src, capture_output=True, text=True, check=True)
    images, megabytes = map(int, done.stdout.split())
    (file,) = (tmp_path / "cache").glob("pixels-*.npy")
    assert images == 10_000
    assert file.stat().st_size > 1.5e9
    assert megabytes < 750  # of which the allocator may keep some 300, as .env tells it to


def test_another_scaling_has_another_name():
    names = {Scaling(*values).name for values in [(8, 8), (8, 9), (8, 8, True), (8, 8, False, 10)]}
    assert len(names) == 4
