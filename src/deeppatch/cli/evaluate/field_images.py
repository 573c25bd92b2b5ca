"""Evaluate a correction with its router on a folder that has test images only, such as images from the field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.sizing import sizing_of
from deeppatch.data import digest
from deeppatch.data.files import Files
from deeppatch.data.folders import list_classes
from deeppatch.data.images import Images, Source
from deeppatch.data.names import slug
from deeppatch.data.scaling import Scaling
from deeppatch.data.splits import Splits
from deeppatch.errors import DataProblem
from deeppatch.progress import info
from deeppatch.storage import read_given
from deeppatch.zoo.names import model_slug


def with_base(options: Any) -> Any:
    """Return the options with the base weights that a given correction was made from, where they name none.

    They are searched for among those that pretrain has left for the same network on any data.
    """
    given = options.patch if options.crt_method == "patch" else options.finetuned
    if options.router_file is None or options.weights is not None or given is None:
        return options
    wanted = tensors_from_bytes(read_given(given), given)[1].get("base")
    pattern = f"*/{model_slug(options.model)}/pretrain*/weights.safetensors"
    for path in sorted(Path(options.output_dir).glob(pattern)):
        if state_digest(tensors_from_bytes(path.read_bytes(), path)[0]) == wanted:
            return replace(options, weights=path)
    return options


def only_test(context: Context) -> None:
    """Let a run read the test images of its folder alone, PATH/test/CLASS/IMAGE or PATH/CLASS/IMAGE.

    Where there is a training part, the run reads the folder as every other does. Classes are those that the correction
    was made for; the folder may lack some of them.
    """
    kind, _, detail = context.options.dataset.partition(":")
    folder = Path(detail)
    if kind != "folder" or (folder / "train").is_dir():
        return
    listed = list_classes(folder / "test" if (folder / "test").is_dir() else folder)
    found = context.found["patch" if context.options.crt_method == "patch" else "finetuned"]
    meta = tensors_from_bytes(read_given(found.path), found.path)[1]
    about = meta.get("about", meta)  # of a patch, and of whole networks
    classes = tuple(about.get("classes") or listed.classes)
    if other := sorted(set(listed.classes) - set(classes)):
        raise DataProblem(f"{folder} has classes that {found.path} was not made for: {', '.join(other[:4])}")
    labels = torch.tensor([classes.index(listed.classes[label]) for label in listed.labels])
    test = Images(Files(listed.paths, _scaling(context, about, listed.paths, folder))[:], labels)
    none = test.take(torch.arange(0))
    context.source = Source(slug(context.options.dataset), none, test, classes)
    parts = Splits(none, test.take(torch.arange(min(2, len(test)))), test)  # two images, to trace networks with
    context.stage.facts["data"] = digest.describe(
        {"test": test}, classes, Path(context.options.output_dir, ".contents")
    )
    context.splits = Splits(*(part.to(context.device) for part in (parts.train, parts.val, parts.test)))
    info(f"data: {len(test)} test images of {len(classes)} classes in {folder}; the router is used as it is")


def _scaling(context: Context, about: dict[str, Any], paths: list[str], folder: Path) -> Scaling:
    if context.options.image_size is None and about.get("image_size"):
        height, width = about["image_size"]
        return Scaling(height, width, context.options.resize == "squash")
    return sizing_of(context.options).of_files(paths, folder)
