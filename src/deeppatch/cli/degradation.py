"""What a run's folder is called by where functions or files say what a degradation is: a digest of what they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deeppatch.cli.options import DEFAULT_SEED
from deeppatch.cli.sizing import sizing_of
from deeppatch.data import corruption_names, digest, names, sources
from deeppatch.data.corruptions import create, identity
from deeppatch.data.corruptions.named import IDENTIFYING_IMAGES
from deeppatch.data.folders import files_under
from deeppatch.data.images import Images
from deeppatch.data.splits import hold_out
from deeppatch.errors import DataProblem, UserError
from deeppatch.storage import sha256


def content_digest(options: Any) -> str:
    """Return a digest of the functions and files that the option noise_type names.

    Of a function it is that of its results for 64 images, which are the same for all runs on a data set: the first of
    val in the default split. Of a folder, or of released files, it is that of their content.
    """
    own = corruption_names.parse(options.noise_type).own
    found = [
        _of_function(name, options) if corruption_names.is_function(name) else _of_files(name, options) for name in own
    ]
    return found[0] if len(found) == 1 else sha256("\n".join(found).encode())


def _of_function(name: str, options: Any) -> str:
    images = _fixed_images(options)
    degrade = create(corruption_names.parse(name), seed=DEFAULT_SEED)
    found = identity(degrade, images)
    if identity(degrade, images) != found:
        raise UserError(
            f"{name} gives other results each time: draw random numbers from the torch.Generator that it receives, "
            "from no other source"
        )
    return found


def _fixed_images(options: Any) -> Images:
    source = sources.load(options.dataset, options.data_dir, DEFAULT_SEED, sizing_of(options))
    val = hold_out(source.train, None, DEFAULT_SEED, source.name)[1]
    return val.take(torch.arange(min(IDENTIFYING_IMAGES, len(val))))


def _of_files(name: str, options: Any) -> str:
    folder = Path(name.partition(":")[2]).expanduser()
    paths = sorted((path for path in files_under(folder) if Path(path).is_file()), key=Path)
    if not paths:
        raise DataProblem(f"{folder} holds no files; give a folder of degraded images")
    cache = Path(options.output_dir, names.slug(options.dataset), "contents")
    places = "\n".join(os.path.relpath(path, folder) for path in paths)  # the folders in them are the classes
    return sha256(f"{digest.contents_digest(paths, cache)}\n{places}".encode("utf-8", "surrogateescape"))
