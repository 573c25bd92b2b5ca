"""The names of data sets and corruptions, checked and turned into folder names without a heavy import."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deeppatch.errors import DataProblem

DATASETS = ("digits", "cifar10", "cifar100", "svhn", "gtsrb", "svhn_5", "digits_5", "imagenet")
# data sets made for weak models: some classes of one data set and last the class to correct, of which there are so many
MIXES = {"cifar10-mix": 10, "svhn-mix": 5, "digits-mix": 5}
# the published command line spells Gaussian blur `gaussion`
CORRUPTIONS = ("gaussion",)
ALIASES = {"gaussian-blur": "gaussion"}


def names() -> list[str]:
    """Return the names of all data sets except image folders; T stands for the class that a mix is made to correct."""
    return [*DATASETS, *(f"{mix}:T" for mix in MIXES)]


def check_name(name: str) -> None:
    """Raise DataProblem unless `name` is that of a data set."""
    kind, _, detail = name.partition(":")
    if kind in MIXES and detail not in map(str, range(MIXES[kind])):
        raise DataProblem(f"-d {name}: name the class to correct, {kind}:0 to {kind}:{MIXES[kind] - 1}")
    if name not in DATASETS and kind not in MIXES and not name.startswith("folder:"):
        raise DataProblem(f"-d {name}: unknown data set; choose from {', '.join(names())} or folder:PATH")


def slug(name: str) -> str:
    """Return the name under which a data set's artifacts are kept.

    `folder:a/b` becomes folder-b-HASH, by its path, and `svhn-mix:3` svhn-mix-3.
    """
    if not name.startswith("folder:"):
        return name.replace(":", "-")
    path = Path(name.removeprefix("folder:")).resolve()
    return f"folder-{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
