"""Labelled images from a Hugging Face data set that was saved on disk, by the package `datasets`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from deeppatch.data.arrays import source_of
from deeppatch.data.files import to_rgb
from deeppatch.data.images import Images, Source
from deeppatch.data.reading import same_size
from deeppatch.data.scaling import Scaling, Sizing, square
from deeppatch.errors import DataProblem
from deeppatch.progress import info

TEST_NAMES = ("test", "validation", "valid", "val")
LAYOUT = "give the folder that save_to_disk wrote, or one with parquet files called train-* and test-*"


def load_saved(path: Path, name: str, seed: int, sizing: Sizing) -> Source:
    """Load the training and the test part of a data set on disk; images become RGB of one size.

    Args:
        path: A folder that `save_to_disk` wrote, or of parquet files; the part `validation` stands for an absent
            `test`, and where there is one part a class-stratified fifth of it is the test part, by seed.
        name: The name of the data set.
        seed: The seed of the split.
        sizing: The size of the images; where it says none, all must have the same.

    Raises:
        DataProblem: When the package is absent, or the data set has no column of images or none of labels.
    """
    found = _open(path)
    parts: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    if "train" not in parts:
        raise DataProblem(f"{path} has the parts {', '.join(parts)}, no train; {LAYOUT}")
    test = next((each for each in TEST_NAMES if each in parts), None)
    if test not in (None, "test"):
        info(f"{path}: there is no part test; {test} is taken for it")
    chosen = [parts["train"], *([parts[test]] if test else [])]
    image, label = _columns(chosen[0].features, path)
    names = getattr(chosen[0].features[label], "names", None)
    images = [_images(part, image, label, sizing, path) for part in chosen]
    return source_of(images, name, None if names is None else [str(each) for each in names], seed)


def _open(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataProblem(
            f"hf:{path} needs the package datasets; install it with: pip install deeppatch[hf]"
        ) from error
    if not path.is_dir():
        raise DataProblem(f"{path}: there is no such folder; {LAYOUT}")
    try:
        if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            return datasets.load_from_disk(str(path))
        files = sorted(each for each in path.rglob("*.parquet") if each.is_file())
        parts = {part: [str(each) for each in files if each.name.startswith(part)] for part in ("train", *TEST_NAMES)}
        given = {part: paths for part, paths in parts.items() if paths}
        if "validation" in given:  # `valid` and `val` are the beginnings of that name
            given = {part: paths for part, paths in given.items() if part not in ("valid", "val")}
        if "train" not in given:
            raise DataProblem(f"{path} holds no data set and no parquet file of a training part; {LAYOUT}")
        return datasets.load_dataset("parquet", data_files=given)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataProblem(f"{path} cannot be read as a data set ({reason}); {LAYOUT}") from error


def _columns(features: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in ("label", "labels", "fine_label", "target") if name in kinds]
    if not images or not labels:
        raise DataProblem(
            f"{path} has the columns {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}; it needs one of "
            "images and one of class labels"
        )
    if len(images) > 1 or len(labels) > 1:
        info(f"{path}: the columns {images[0]} and {labels[0]} are read, not {', '.join(images[1:] + labels[1:])}")
    return images[0], labels[0]


def _images(part: Any, image: str, label: str, sizing: Sizing, path: Path) -> Images:
    size = sizing.size or sizing.default
    scaled = (lambda rgb: Scaling(rgb.height, rgb.width)(rgb)) if size is None else square(size, squash=sizing.squash)
    pixels, labels, wrong = [], [], []
    for number, row in enumerate(part):
        labels.append(row[label])
        try:
            pixels.append(scaled(to_rgb(_opened(row[image]))))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError):
            wrong.append(str(number))
    if wrong:
        raise DataProblem(f"{path}: the images of the rows {', '.join(wrong)} cannot be read; replace or delete them")
    if not pixels:
        raise DataProblem(f"{path} has a part without images; {LAYOUT}")
    if not all(isinstance(each, (int, np.integer)) and each >= 0 for each in labels):
        raise DataProblem(f"{path}: labels must be whole numbers from 0; those of some rows are missing")
    same_size([each.unsqueeze(0) for each in pixels], str(path))
    return Images(torch.stack(pixels), torch.tensor([int(each) for each in labels]))


def _opened(value: Any) -> Image.Image:
    """Return an image as the package decodes it, or from the bytes that it stores."""
    if isinstance(value, Image.Image):
        return value
    return Image.open(io.BytesIO(value["bytes"]))
