"""Malformed inputs of every kind, generated from random numbers: each is wrong by how it is made."""

from __future__ import annotations

import argparse
import importlib
import io
import random
import shutil
import string
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from workshop import RESNET

from deeppatch.cli import main, parsing

BASE = "digits/resnet8/pretrain-limit30-*/weights.safetensors"


@dataclass(frozen=True)
class Case:
    """A command that must be refused, and what is wrong with it."""

    line: list[str]
    what: str


class Place:
    """A folder to make inputs in, and what all stages have left, to be changed."""

    def __init__(self, folder: Path, left: Path, output: Path) -> None:
        self.folder, self.left, self.output = folder, left, output

    def copy(self) -> Path:
        """Put what all stages left into the output folder."""
        shutil.copytree(self.left, self.output)
        return self.output

    def file(self, name: str, content: bytes) -> Path:
        """Write a file, and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def junk(draw: random.Random, size: int) -> bytes:
    return draw.randbytes(size)


def damaged(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """Return content that is cut, empty, or other bytes altogether."""
    how = draw.choice(["cut", "empty", "junk", "text", "zeros"])
    cut = content[: draw.randint(1, max(1, len(content) * 3 // 4))]
    made = {"cut": cut, "empty": b"", "junk": junk(draw, draw.randint(1, 3000)), "text": b"no such thing\n" * 9}
    return made.get(how, bytes(draw.randint(1, 3000))), how


def word(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) + "q"


# flags


def parsers() -> list[tuple[str, argparse.ArgumentParser]]:
    modules = {
        script: importlib.import_module(f"deeppatch.cli.{stage}.command") for script, stage in main.COMMANDS.items()
    }
    return [(script, parsing.parser_of(module, "python src/{script}.py")) for script, module in modules.items()]


def unknown_flag(draw: random.Random, place: Place) -> Case:
    script, _parser = draw.choice(parsers())
    flag = draw.choice(["--", "-"]) + "z" + word(draw)
    return Case([script, *(["validate"] if script == "decompose" else []), flag], f"{script} {flag}")


def flag_value(draw: random.Random, place: Place) -> Case:
    """A text where a number belongs, a number that cannot be, or a word that is no choice."""
    script, parser = draw.choice(parsers())
    named = [each for each in parser._actions if each.option_strings and each.nargs != 0]
    action = draw.choice([each for each in named if each.choices or each.type in (int, float)])
    bad: list[str] = ["", "x7", "1,5", "0x10", "--", "one", "1e", "\0", "nan", "-inf"]
    if action.choices:
        bad = ["", word(draw), f"{next(iter(action.choices))}x", "-", "\0"]
    elif action.type is int:
        bad += ["1.5", "-1", str(-(10 ** draw.randint(1, 30)))]
    values = [draw.choice(bad)] * (action.nargs if isinstance(action.nargs, int) else 1)
    flag = max(action.option_strings, key=len)
    front = ["validate"] if script == "decompose" else []
    given = [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]
    return Case([script, *front, *given], f"{script} {flag} {values[0]!r}")


DATA_NAMES = [
    "mnist", "", "digits:", "digits:9-1", "digits:a-b", "digits:0-99", "digits:-1", "digits:0", "digits-mix:x",
    "digits-mix:99", "cifar10-mix:", "folder:", "npz:", "hf:", "folder:\0", "npz:.", "hf:.", "folder:/dev/null",
    "DIGITS:1",
        "digits+digits", "digits:0-4+digits:0-4", "digits:0-4+", "hf:/nowhere", "npz:/nowhere.npz", "folder:/nowhere",
    "..",
    "folder:" + "a" * 5000, "digits:" + "9" * 400, "digits_4",
]  # fmt: skip
MODELS = [
    "", "resnet", "timm:", "torchvision:", "timm:" + "x" * 300, "torchvision:nothing", "os:getcwd", "json:loads",
    "a.b:c", "..:f", ":f", "os:", "os:environ", "builtins:exit", "torchvision:resnet18:2", "\0", "resnet8 ", "-",
    "sys:exit", "math:pi",
]  # fmt: skip
DEGRADATIONS = [
    "", ",", "fog9", "fog,", "fog,,snow", "folder:", "released:", "folder:/nowhere", "released:/nowhere", "json:loads",
    "os:getcwd", "a.b:c", "fog:1", "sys:exit", "gaussion gaussion", "folder:/dev/null", "\0", "math:pi",
    "builtins:exit",
]  # fmt: skip
SEVERITIES = ["", "0", "6", "1,6", "a", "1-", "1.5", "-1", ",", "1,,2", "nan", "99999999999999999999"]


def data_name(draw: random.Random, place: Place) -> Case:
    name = draw.choice(DATA_NAMES)
    return Case(["eval", "-m", "resnet8", "-d", name, "-e", "1"], f"-d {name[:40]!r}")


def model_name(draw: random.Random, place: Place) -> Case:
    name = draw.choice(MODELS)
    return Case(["eval", "-m", name, "-d", "digits", "--limit", "20", "-e", "1"], f"-m {name[:40]!r}")


def degradation(draw: random.Random, place: Place) -> Case:
    given = (
        ["-n", draw.choice(DEGRADATIONS)]
        if draw.random() < 0.6
        else ["-n", "fog", f"--severity={draw.choice(SEVERITIES)}"]
    )
    return Case(["eval", *RESNET.split(), "--train", "-e", "1", *given], " ".join(given)[:60])


# images, folders and archives


def picture(draw: random.Random, ending: str = "png") -> bytes:
    buffer = io.BytesIO()
    pixels = np.frombuffer(draw.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3)
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg"}.get(ending, ending))
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises an image of 10^10 pixels."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    import zlib

    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def images_of(draw: random.Random, place: Place, classes: int = 3, each: int = 4) -> Path:
    root = place.folder / "photos"
    for part in ("train", "test"):
        for label in range(classes):
            for number in range(each):
                place.file(f"photos/{part}/class{label}/{number}.png", picture(draw))
    return root


def image(draw: random.Random, place: Place) -> Case:
    """One image of a folder that cannot be read."""
    root, ending = images_of(draw, place), draw.choice(["png", "jpg", "bmp", "gif", "webp", "tiff"])
    victim = root / draw.choice(["train", "test"]) / f"class{draw.randrange(3)}" / f"9.{ending}"
    how = draw.choice(["damaged", "damaged", "folder", "dangling", "loop", "bomb", "unreadable"])
    if how == "damaged":
        # at most a header: decoders complete the pixels of a longer beginning in their own way
        content, how = damaged(draw, picture(draw, ending)[:20])
        victim.write_bytes(content)
    elif how == "folder":
        victim.mkdir()
        (victim / "x.png").write_bytes(b"")
    elif how in ("dangling", "loop"):
        victim.symlink_to("nowhere.png" if how == "dangling" else victim.name)
    else:
        victim.with_suffix(".png").write_bytes(bomb() if how == "bomb" else b"\x89PNG\r\n\x1a\n")
    return Case(["eval", "-m", "resnet8", "-d", f"folder:{root}", "-e", "1", "-b", "4"], f"image {ending}: {how}")


def image_folder(draw: random.Random, place: Place) -> Case:
    """A folder that is laid out otherwise."""
    root = images_of(draw, place)

    def remove(*names: str) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    changes: dict[str, Callable[[], object]] = {
        "no test": lambda: remove("test"),
        "no train": lambda: remove("train"),
        "empty class": lambda: remove(*(f"train/class1/{number}.png" for number in range(4))),
        "one class": lambda: remove(*(f"{part}/class{label}" for part in ("train", "test") for label in (1, 2))),
        "other class": lambda: (root / "test" / "class0").rename(root / "test" / word(draw)),
        "files only": lambda: (remove("train"), place.file("photos/train/1.png", picture(draw))),
        "one image": lambda: remove(*(f"train/class1/{number}.png" for number in range(1, 4))),
        "file": lambda: (shutil.rmtree(root), root.write_bytes(picture(draw))),
    }
    how = draw.choice([*changes])
    changes[how]()
    return Case(["eval", "-m", "resnet8", "-d", f"folder:{root}", "-e", "1", "-b", "4"], f"folder: {how}")


def arrays(draw: random.Random) -> dict[str, Any]:
    pixels = np.frombuffer(draw.randbytes(24 * 8 * 8 * 3), np.uint8).reshape(24, 8, 8, 3)
    return {"images": pixels, "labels": np.arange(24) % 3}


def archive(draw: random.Random, place: Place) -> Case:
    """Arrays in a file that are damaged or not of the kind that is read."""
    given = arrays(draw)
    changes: dict[str, Callable[[], object]] = {
        "no labels": lambda: given.pop("labels"),
        "no images": lambda: given.pop("images"),
        "other number": lambda: given.update(labels=np.arange(23) % 3),
        "text labels": lambda: given.update(labels=np.array([[1], [2]], dtype=object)),
        "negative labels": lambda: given.update(labels=np.arange(24) % 3 - 1),
        "fractions": lambda: given.update(labels=np.arange(24) % 3 + 0.5),
        "not finite": lambda: given.update(images=np.full((24, 8, 8, 3), np.nan, np.float32)),
        "flat images": lambda: given.update(images=given["images"].reshape(24, -1)),
        "seven channels": lambda: given.update(images=np.zeros((24, 8, 8, 7), np.uint8)),
        "no image": lambda: given.update(images=given["images"][:0], labels=given["labels"][:0]),
        "complex": lambda: given.update(images=given["images"].astype(complex)),
        "objects": lambda: given.update(images=np.array([{"a": 1}] * 24, dtype=object)),
        "one class": lambda: given.update(labels=np.zeros(24, int)),
        "no pixels": lambda: given.update(images=given["images"][:, :0]),
    }
    how = draw.choice([*changes, "damaged", "damaged", "other zip", "a list"])
    buffer = io.BytesIO()
    if how in changes:
        changes[how]()
    if how == "other zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("images.npy", junk(draw, 99))
            file.writestr("labels.npy", b"\x93NUMPY\x01\x00")
    elif how == "a list":
        np.save(buffer, given["labels"])
    else:
        np.savez(buffer, **given)
    content = buffer.getvalue()
    if how == "damaged":
        content, how = damaged(draw, content)
    path = place.file("given.npz", content)
    return Case(["eval", "-m", "resnet8", "-d", f"npz:{path}", "-e", "1", "-b", "4"], f"npz: {how}")


def downloaded(draw: random.Random, place: Place) -> Case:
    """A data set whose files lie there damaged, where nothing can be downloaded."""
    name = draw.choice(["cifar10", "cifar100", "svhn", "gtsrb"])
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}.get(name, name)
    for file in ("data_batch_1", "test_batch", "train", "test", "batches.meta", "meta", "train_32x32.mat"):
        place.file(f"data/{folder}/{file}", damaged(draw, junk(draw, 3000))[0])
    return Case(["eval", "-m", "resnet8", "-d", name, "--data_dir", str(place.folder / "data")], f"{name}: damaged")
