"""Tiny ImageNet as it is published: 200 classes of 64x64 pixels; a list has the classes of validation images."""

from __future__ import annotations

from pathlib import Path

from deeppatch.data.folders import Listing, NoImages, list_classes
from deeppatch.errors import DataProblem

SIDE = 64
FOLDERS = ("tiny-imagenet-200", "tinyimagenet/tiny-imagenet-200", "tinyimagenet")
ANNOTATIONS = "val_annotations.txt"


def list_tiny_imagenet(data_dir: Path) -> list[Listing]:
    """List the training and the validation images by class.

    These are train/WNID/images/*, and val/images/* with the classes of val_annotations.txt, or val/WNID/* without it.

    Raises:
        DataProblem: When something is absent or damaged, with what to download and where it goes.
    """
    folders = [data_dir / name for name in FOLDERS]
    root = next((each for each in folders if (each / "train").is_dir()), folders[0])
    advice = (
        "get tiny-imagenet-200.zip from cs231n.stanford.edu and unpack it in "
        f"{data_dir}, so that there are {folders[0]}/train/n01443537/images and {folders[0]}/val/{ANNOTATIONS}"
    )
    try:
        for part in ("train", "val"):
            if not (root / part).is_dir():
                raise NoImages(root, f"{root / part} is missing")
        train = list_classes(root / "train")
        annotated = root / "val" / ANNOTATIONS
        val = _annotated(annotated, train.classes, advice) if annotated.is_file() else list_classes(root / "val")
    except NoImages as error:
        raise DataProblem(f"tinyimagenet: {error.state}; {advice}") from error
    if odd := sorted(set(train.classes) ^ set(val.classes)):
        raise DataProblem(f"tinyimagenet: only one part of {root} has the classes {', '.join(odd[:4])}; {advice}")
    return [train, val]


def _annotated(path: Path, classes: tuple[str, ...], advice: str) -> Listing:
    """List the images that a list names, each with the name of its class behind a tab, in the order of the list."""
    index = {name: label for label, name in enumerate(classes)}
    found = Listing(classes, [], [])
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = index.get(rest.partition("\t")[0])
        image = path.parent / "images" / name
        if label is None or not name or not image.is_file():
            what = f"no image {image}" if label is not None else "no class of train"
            raise DataProblem(f"tinyimagenet: line {number} of {path} names {what}; {advice}")
        found.paths.append(str(image))
        found.labels.append(label)
    if not found.paths:
        raise DataProblem(f"tinyimagenet: {path} is empty; {advice}")
    return found
