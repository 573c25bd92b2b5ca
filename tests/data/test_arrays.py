"""Images in a file of numpy arrays, and in a saved data set of Hugging Face's, whose package a small one stands for."""

from __future__ import annotations

import io
import json
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data import names, sources
from deeppatch.data.dataset import load_data
from deeppatch.data.scaling import Sizing
from deeppatch.errors import DataProblem


def problem(name: str) -> str:
    with pytest.raises(DataProblem) as error:
        sources.load(name, Path("data"), 2021)
    assert "\n" not in str(error.value)
    return str(error.value)


def some(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


LABELS = np.arange(40) % 4


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "mine.npz"


# --- npz


def test_one_array_of_images_is_split_by_class_and_seed(path, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    images = some(40, 12, 10, 3)
    np.savez(path, images=images, labels=LABELS)
    source = sources.load(f"npz:{path}", Path("data"), 2021)
    assert (len(source.train), len(source.test), source.classes) == (32, 8, ("0", "1", "2", "3"))
    assert torch.bincount(source.test.labels).tolist() == [2] * 4
    assert source.train.pixels.shape[1:] == (3, 12, 10), "images keep their size"
    both = {each.numpy().tobytes() for part in (source.train, source.test) for each in part.pixels}
    assert both == {np.ascontiguousarray(each.transpose(2, 0, 1)).tobytes() for each in images}
    again, other = (sources.load(f"npz:{path}", Path("data"), seed) for seed in (2021, 3))
    assert torch.equal(again.test.pixels, source.test.pixels)
    assert not torch.equal(other.test.pixels, source.test.pixels)
    assert "8 of 40 images are the test part, by class and seed" in caplog.text


@pytest.mark.parametrize("named", [("train_images", "train_labels", "test_images", "test_labels"),
                                   ("x_train", "y_train", "x_test", "y_test")])  # fmt: skip
def test_the_parts_of_a_publisher_are_kept(path, named, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    arrays = (some(40, 8, 8), LABELS.reshape(-1, 1), some(8, 8, 8), LABELS[:8].reshape(-1, 1))
    np.savez(path, **dict(zip(named, arrays, strict=True)), val_images=some(4, 8, 8))
    source = sources.load(f"npz:{path}", Path("data"), 2021)
    assert (len(source.train), len(source.test)) == (40, 8)
    assert torch.equal(source.train.pixels[:, 1], torch.from_numpy(arrays[0]))
    assert source.train.labels.tolist() == LABELS.tolist()
    assert "val_images are not read" in caplog.text


@pytest.mark.parametrize(
    "images",
    [some(40, 3, 8, 8), some(40, 8, 8), some(40, 8, 8, 1), some(40, 8, 8, 3) / 255, some(40, 8, 8).astype(np.int64)],
    ids=["channels first", "grey", "one channel", "float", "int64"],
)
def test_images_may_have_every_usual_layout_and_type(path, images):
    np.savez_compressed(path, images=images, labels=LABELS)
    assert sources.load(f"npz:{path}", Path("data"), 2021).train.pixels.shape == (32, 3, 8, 8)


def test_labels_may_be_names(path):
    np.savez(path, images=some(40, 8, 8), labels=np.array(["10", "9", "2", "1"])[LABELS])
    source = sources.load(f"npz:{path}", Path("data"), 2021)
    assert source.classes == ("1", "2", "9", "10")
    np.savez(path, images=some(40, 8, 8), labels=LABELS, classes=np.array(["a", "b", "c", "d"]))
    assert sources.load(f"npz:{path}", Path("data"), 2021).classes == ("a", "b", "c", "d")
    np.savez(path, images=some(40, 8, 8), labels=np.array(["a", "z"])[LABELS % 2], classes=np.array(["a", "b"]))
    assert "labels name no class of a, b: z" in problem(f"npz:{path}")


def test_the_training_images_say_which_classes_there_are(path):
    images, names = some(40, 8, 8), np.array(["a", "b", "c", "d"])[LABELS]
    parts = {"train_images": images, "train_labels": names, "test_images": images[:2]}
    np.savez(path, **parts, test_labels=names[:2])
    assert sources.load(f"npz:{path}", Path("data"), 2021).classes == ("a", "b", "c", "d")
    np.savez(path, **parts, test_labels=LABELS[:2])
    assert "labels name no class of a, b, c, d: 0, 1" in problem(f"npz:{path}")


REFUSED = {
    "other names": ({"x": some(4, 8, 8)}, "holds x; give arrays images"),
    "fewer labels": ({"images": some(4, 8, 8), "labels": LABELS[:3]}, "4 images have 3 labels"),
    "objects": ({"images": np.array([{}, 1], object), "labels": LABELS[:2]}, "which are not unpickled"),
    "negative": ({"images": some(40, 8, 8), "labels": LABELS - 1}, "labels reach from -1 to 2"),
    "complex": ({"images": some(40, 8, 8) * 1j, "labels": LABELS}, "pixels are complex numbers"),
    "complex labels": ({"images": some(40, 8, 8), "labels": LABELS * 1j}, "labels must be class indices"),
    "fractions": ({"images": some(40, 8, 8), "labels": LABELS / 2}, "labels must be class indices"),
    "normalised": ({"images": some(40, 8, 8) / 50 - 1, "labels": LABELS}, "not 0 to 1"),
    "one class": ({"images": some(4, 8, 8), "labels": LABELS[:4] * 0}, "has images of a single class"),
    "a class of one": ({"images": some(9, 8, 8), "labels": np.array([0] * 8 + [1])}, "class 1 has 1 of 9 images"),
    "huge labels": ({"images": some(40, 8, 8), "labels": LABELS + 2**40}, "labels reach to 1099511627779"),
    "16 bits": ({"images": some(40, 8, 8).astype(np.uint16) * 257, "labels": LABELS}, "whole numbers must be 0 to 255"),
    "not UTF-8": ({"images": some(40, 8, 8), "labels": np.array([b"a", b"\xff"])[LABELS % 2]}, "are not UTF-8"),
    "one name twice": (
        {"images": some(40, 8, 8), "labels": LABELS, "classes": np.array(["a", "b", "a", "d"])},
        "classes names a more than once",
    ),
    "no images": ({"images": some(0, 8, 8), "labels": LABELS[:0]}, "holds no images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_labelled_images_are_refused(path, name):
    arrays, said = REFUSED[name]
    np.savez(path, **arrays)
    assert said in problem(f"npz:{path}")


def test_another_file_is_named(path):
    for content in (b"", b"PK\x03\x04junk", b"no arrays"):
        path.write_bytes(content)
        assert problem(f"npz:{path}").startswith(f"{path} is no readable file of numpy.savez")
    with path.open("wb") as file:
        np.save(file, some(4, 8, 8))
    assert "holds one array without a name" in problem(f"npz:{path}")


def test_nothing_in_an_array_is_unpickled(path, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.savez(path, images=np.array([Code()], object), labels=LABELS[:1])
    problem(f"npz:{path}")
    assert not (tmp_path / "ran").exists()


def test_names_of_own_images_are_checked_without_reading_them(tmp_path):
    assert names.slug(f"npz:{tmp_path}/a.npz").startswith("npz-a-")
    assert names.slug(f"hf:{tmp_path}/a").startswith("hf-a-")
    for name in ("npz:nowhere.npz", "hf:nowhere"):
        names.check_name(name)
        with pytest.raises(DataProblem, match="nowhere.*: there is no such f"):
            names.check_path(name)
    with pytest.raises(DataProblem, match="npz:: unknown data set"):
        names.check_name("npz:")


def test_arrays_are_data_from_python_too(path):
    np.savez(path, images=some(40, 8, 8), labels=LABELS)
    data = load_data(f"npz:{path}", val_share=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 8, 8)


# --- a saved data set of Hugging Face's


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Part:
    """A part of a data set: columns with kinds, and rows."""

    def __init__(self, features, rows):
        self.features, self.rows = features, rows

    def __iter__(self):
        return iter(self.rows)


FEATURES = {"image": type("Image", (), {})(), "label": ClassLabel(["cat", "dog"])}


def image(number: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(some(number + 1, 20, 30, 3)[0]).convert(mode)


def rows(count: int) -> list[dict[str, object]]:
    return [{"image": image(number), "label": number % 2} for number in range(count)]


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Stand for the package `datasets`: it returns `content` for what was saved, and notes what it was asked for."""
    module = types.ModuleType("datasets")
    module.content, module.asked = {}, []
    module.load_from_disk = lambda path: module.asked.append(path) or module.content
    module.load_dataset = lambda kind, data_files: module.asked.append((kind, data_files)) or module.content
    monkeypatch.setitem(sys.modules, "datasets", module)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return module


def test_a_saved_data_set_is_read_part_by_part(package, tmp_path):
    package.content = {"train": Part(FEATURES, rows(6)), "test": Part(FEATURES, rows(4))}
    source = sources.load(f"hf:{tmp_path / 'set'}", Path("data"), 2021, Sizing(32, squash=True))
    assert package.asked == [str(tmp_path / "set")]
    assert (source.classes, len(source.train), len(source.test)) == (("cat", "dog"), 6, 4)
    assert source.train.labels.tolist() == [0, 1] * 3
    want = np.asarray(image(3).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(source.train.pixels[3].permute(1, 2, 0), want)
    larger = sources.load(f"hf:{tmp_path / 'set'}", Path("data"), 2021, Sizing(40))
    assert larger.train.pixels.shape == (6, 3, 40, 40)


def test_parquet_files_are_given_to_the_package_by_part(package, tmp_path):
    folder = tmp_path / "parquet"
    (folder / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (folder / "data" / f"{name}.parquet").touch()
    package.content = {"train": Part(FEATURES, rows(6)), "validation": Part(FEATURES, rows(2))}
    assert len(sources.load(f"hf:{folder}", Path("data"), 2021).test) == 2
    ((kind, files),) = package.asked
    assert kind == "parquet"
    assert [Path(each).name for each in files["train"]] == [f"train-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert set(files) == {"train", "validation"}
    (tmp_path / "empty").mkdir()
    assert "no parquet file of a training part" in problem(f"hf:{tmp_path / 'empty'}")


def test_one_part_is_split_and_stored_bytes_are_decoded(package, tmp_path, caplog):
    caplog.set_level(logging.INFO, "deeppatch")
    buffer = io.BytesIO()
    see_through = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    see_through.save(buffer, "PNG")
    stored = [{"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 2} for number in range(20)]
    package.content = Part(FEATURES, stored)
    source = sources.load(f"hf:{tmp_path / 'set'}", Path("data"), 2021, Sizing(32, squash=True))
    assert (len(source.train), len(source.test)) == (16, 4)
    assert source.train.pixels.min() == 255, "transparent pixels show the background"


def test_what_a_data_set_lacks_is_named(package, tmp_path):
    name = f"hf:{tmp_path / 'set'}"
    package.content = {"test": Part(FEATURES, rows(2))}
    assert "has the parts test, no train" in problem(name)
    package.content = {"train": Part({"text": Value()}, [])}
    assert "has the columns text (Value); it needs one of images and one of class labels" in problem(name)
    broken = rows(4)
    broken[1]["image"], broken[2]["image"] = {"bytes": b"no image"}, None
    package.content = {"train": Part(FEATURES, broken), "test": Part(FEATURES, rows(2))}
    assert "the images of the rows 1, 2 cannot be read" in problem(name)
    package.content = {"train": Part(FEATURES, [{"image": image(1), "label": None}]), "test": Part(FEATURES, rows(2))}
    assert "labels must be whole numbers from 0" in problem(name)
    package.content = {"train": Part(FEATURES, []), "test": Part(FEATURES, rows(2))}
    assert "has a part without images" in problem(name)


def test_a_damaged_data_set_is_one_line(package, tmp_path):
    def broken(_path):
        raise ValueError("bad\nfile")

    package.load_from_disk = broken
    assert "cannot be read as a data set (bad)" in problem(f"hf:{tmp_path / 'set'}")


def test_without_the_package_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert problem(f"hf:{tmp_path}").endswith("needs the package datasets; install it with: pip install deeppatch[hf]")
