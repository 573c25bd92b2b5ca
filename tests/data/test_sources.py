from __future__ import annotations

import pickle
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from deeppatch.data import sources
from deeppatch.data.scaling import Sizing
from deeppatch.data.splits import split
from deeppatch.errors import DataProblem

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def build(folder: Path, classes=CLASSES, each: int = 2) -> Path:
    """Make folder/{train,test}/CLASS/N.png, all pictures different."""
    for part in ("train", "test"):
        for place, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for number in range(each):
                seed = 1000 * (part == "test") + 10 * place + number
                picture(seed).save(folder / part / name / f"{number}.png")
    return folder


def problem(name: str, data_dir: Path) -> str:
    """The one line that DataProblem says."""
    with pytest.raises(DataProblem) as error:
        sources.load(name, data_dir, 2021)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def offline(monkeypatch):
    """Refuse every download; returns the list of those that were asked for."""
    asked = []

    def refuse(request, *_arguments, **_names):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


# --- names


@pytest.mark.parametrize("name", ["cifar11", "", "CIFAR10", "folder", "data/cifar10"])
def test_an_unknown_data_set_is_refused_with_those_there_are(tmp_path, name):
    message = problem(name, tmp_path)
    assert message.startswith(f"{name}: unknown data set")
    for known in ("digits", "cifar10", "cifar100", "folder:PATH"):
        assert known in message


def test_images_are_taken_in_the_order_asked_for(images):
    taken = images.take(torch.tensor([7, 3, 3]))
    assert len(taken) == 3
    assert torch.equal(taken.pixels, torch.stack([images.pixels[7], images.pixels[3], images.pixels[3]]))
    assert taken.labels.tolist() == [2, 3, 3]
    assert taken.to(torch.device("cpu")).labels.tolist() == [2, 3, 3]


# --- digits


def test_digits_are_all_of_the_embedded_images_enlarged_four_times(tmp_path):
    source = sources.load("digits", tmp_path, 2021)
    assert (len(source.train), len(source.test)) == (1437, 360)
    assert source.classes == tuple("0123456789")
    assert not source.augment, "a mirrored digit is no digit"
    assert list(tmp_path.iterdir()) == []
    found = set()
    for part in (source.train, source.test):
        assert part.pixels.shape[1:] == (3, 32, 32)
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        small = part.pixels[:, :1, ::4, ::4]
        assert torch.equal(small.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1), part.pixels)
        found |= {(image.numpy().tobytes(), int(label)) for image, label in zip(small, part.labels, strict=True)}
    digits = load_digits()
    grey = np.round(digits.images / 16 * 255).astype(np.uint8)
    assert found == {(image.tobytes(), int(label)) for image, label in zip(grey, digits.target, strict=True)}


def test_digits_are_split_by_class_and_seed(tmp_path):
    first, again, other = (sources.load("digits", tmp_path, seed) for seed in (2021, 2021, 7))
    assert torch.equal(first.test.pixels, again.test.pixels)
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.test.pixels, other.test.pixels)
    assert len(other.test) == 360
    shares = torch.bincount(first.test.labels) / torch.bincount(torch.from_numpy(load_digits().target))
    assert ((shares > 0.19) & (shares < 0.21)).all()


# --- image folders


def test_a_folder_s_images_come_by_class_and_name_pixel_for_pixel(tmp_path):
    build(tmp_path / "pets")
    source = sources.load(f"folder:{tmp_path / 'pets'}", tmp_path / "unused", 2021, Sizing(32))
    assert source.name.startswith("folder-pets-")
    assert source.classes == CLASSES
    assert source.augment
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for part, first in ((source.train, 0), (source.test, 1000)):
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        want = [np.asarray(picture(first + 10 * place + number)) for place in range(3) for number in range(2)]
        assert np.array_equal(part.pixels.permute(0, 2, 3, 1).numpy(), np.stack(want))
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(("width", "height", "mode"), [(64, 48, "RGB"), (20, 33, "RGB"), (32, 32, "L"),
                                                       (32, 32, "RGBA"), (32, 32, "P"), (9, 9, "1")])  # fmt: skip
def test_other_sizes_and_modes_become_rgb_of_32_pixels(tmp_path, width, height, mode):
    build(tmp_path)
    image = picture(5, width, height, mode)
    image.save(tmp_path / "train" / "bee" / "0.png")
    found = sources.load(f"folder:{tmp_path}", tmp_path, 2021, Sizing(32, squash=True)).train.pixels[2]
    want = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(want))


def test_other_files_and_formats_lie_beside(tmp_path):
    build(tmp_path)
    (tmp_path / "train" / "ant" / "README.txt").write_text("no image")
    picture(1).save(tmp_path / "train" / "ant" / "z.jpg")
    assert sources.load(f"folder:{tmp_path}", tmp_path, 2021, Sizing(32)).train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_part_is_named_with_the_layout(tmp_path, part):
    (build(tmp_path) / part).rename(tmp_path / "elsewhere")
    message = problem(f"folder:{tmp_path}", tmp_path)
    assert message.startswith(f"{tmp_path / part} is missing")
    assert "{train,test}/CLASS/IMAGE" in message


def test_an_absent_folder_is_named(tmp_path):
    folder = tmp_path / "nowhere"
    assert problem(f"folder:{folder}", tmp_path).startswith(f"{folder / 'train'} is missing")


def test_classes_that_differ_are_named(tmp_path):
    build(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "dog")
    message = problem(f"folder:{tmp_path}", tmp_path)
    assert "cat, dog" in message
    assert str(tmp_path) in message


def test_a_class_that_one_part_lacks_is_named(tmp_path):
    build(tmp_path, each=1)
    (tmp_path / "test" / "cat" / "0.png").rename(tmp_path / "test" / "bee" / "1.png")
    (tmp_path / "test" / "cat").rmdir()
    assert "different classes (cat)" in problem(f"folder:{tmp_path}", tmp_path)


def test_an_empty_class_is_named(tmp_path):
    build(tmp_path)
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    message = problem(f"folder:{tmp_path}", tmp_path)
    assert str(tmp_path / "train") in message
    assert "bee" in message


def test_a_part_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    assert str(tmp_path / "train") in problem(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_a_truncated_image_is_named(tmp_path, kept):
    file = build(tmp_path) / "test" / "bee" / "1.png"
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert problem(f"folder:{tmp_path}", tmp_path) == f"{file} is no readable image; replace or delete it"


def test_a_text_named_as_an_image_is_named(tmp_path):
    file = build(tmp_path) / "test" / "bee" / "1.png"
    file.write_text("<html>404</html>")
    assert problem(f"folder:{tmp_path}", tmp_path) == f"{file} is no readable image; replace or delete it"


def test_cifar100_may_be_an_image_folder(tmp_path, offline):
    build(tmp_path / "cifar100")
    source = sources.load("cifar100", tmp_path, 2021)
    assert source.name == "cifar100"
    assert source.classes == CLASSES
    assert len(source.train) == 6
    assert offline == []


# --- CIFAR


def damaged_cifar(data_dir: Path) -> Path:
    """Files with CIFAR-10's names, cut short."""
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batch = pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": [0] * 10}, protocol=2)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(batch[:-100])
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_files_without_a_network_are_named_with_two_ways_out(tmp_path, offline, name):
    message = problem(name, tmp_path / "new")
    base = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    assert f"the files in {tmp_path / 'new' / base} are absent" in message
    assert "no route to host" in message
    assert f"unpack the archive in {tmp_path / 'new'}" in message
    assert f"{tmp_path / 'new' / name}/{{train,test}}/CLASS" in message
    assert offline


def test_truncated_files_without_a_network_are_damaged_and_stay(tmp_path, offline):
    folder = damaged_cifar(tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert f"the files in {folder} are damaged or incomplete" in problem("cifar10", tmp_path)
    assert offline
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_damaged_download_is_named(tmp_path, monkeypatch):
    class Response:
        url, length = None, 5

        def __init__(self, *_arguments):
            self.chunks = [b"wrong", b""]

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def read(self, _size):
            return self.chunks.pop(0)

    monkeypatch.setattr(urllib.request, "urlopen", Response)
    assert "cannot be downloaded" in problem("cifar10", tmp_path)


@pytest.mark.realdata
def test_cifar10_s_own_files_give_the_published_splits(cifar10, offline):
    source = sources.load("cifar10", cifar10, 2021)
    assert (len(source.train), len(source.test)) == (50_000, 10_000)
    assert source.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert source.augment
    assert offline == []
    for part in (source.train, source.test):
        assert part.pixels.shape[1:] == (3, 32, 32)
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    # the batch files hold each image as 1,024 red, then green, then blue values in row order
    with (cifar10 / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        raw = pickle.load(file, encoding="bytes")  # noqa: S301
    assert torch.equal(source.test.pixels.flatten(1), torch.from_numpy(raw[b"data"]))
    assert source.test.labels.tolist() == raw[b"labels"]
    sums = source.train.pixels.sum((0, 2, 3), dtype=torch.int64)
    assert (sums / (50_000 * 1024 * 255)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    parts = split(source, 2021)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (49_000, 1000, 10_000)
    assert torch.bincount(parts.val.labels).tolist() == [100] * 10
    assert torch.bincount(parts.train.labels).tolist() == [4900] * 10


@pytest.mark.parametrize("place", [11, 20])
def test_a_damaged_image_is_named(tmp_path, place):
    build(tmp_path / "pets")
    file = sorted((tmp_path / "pets" / "train").glob("*/*"))[0]
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataProblem, match="is no readable image"):
        sources.load(f"folder:{tmp_path / 'pets'}", tmp_path, 2021, Sizing(32))


def test_sixteen_bits_a_channel_are_refused_rather_than_clipped(tmp_path):
    build(tmp_path / "pets")
    file = sorted((tmp_path / "pets" / "train").glob("*/*"))[0]
    Image.fromarray(np.full((32, 32), 30000, np.uint16)).save(file.with_suffix(".png"))
    with pytest.raises(DataProblem, match="more than 8 bits"):
        sources.load(f"folder:{tmp_path / 'pets'}", tmp_path, 2021, Sizing(32))
