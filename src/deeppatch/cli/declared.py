"""What stages declare that they leave: folders, by the pattern of their names, and the files in each.

A command module has `ARTIFACTS`, the folders that its stage leaves; the tests compare every run with them, and
docs/reference/artifacts.md is made from them. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# folders beside those of the stages that keep tensors which later runs would compute again, and what each holds
CACHES = {
    "features": "the features of the last layer for all images, which influence and decompose read",
    "encoder": "the encoders that `annotate --features ssl` has trained on images without labels",
    "cells": "what each network answered on each view, which compare has measured",
    "relearn-start": "the warm starts of relearn: the network fine-tuned on its labelled images",
}

# what pretrain and evaluate leave where degradations are others than the default
DEGRADATION_FILES = {
    "corruptions.csv": "errors of each network by type and severity, with other degradations than the default",
    "corruptions.json": "the same, nested, with means of types, groups and held-out types",
    "corruptions.png": "heat maps of accuracy by type and severity",
    "differences.png": "heat maps of the accuracy gained over the pretrained network",
}


@dataclass(frozen=True)
class Folder:
    """A folder that a stage leaves.

    In `pattern` words in capitals stand for values of options, and what is in brackets may be absent. `files` has a
    line on each file that is always there, `sometimes` on each that some runs leave, with the condition.
    """

    pattern: str
    about: str
    files: Mapping[str, str]
    sometimes: Mapping[str, str] = field(default_factory=dict)

    def matches(self, name: str) -> bool:
        """Tell whether a folder's name, with whatever follows the readable stem, is of this pattern."""
        replaced = {"[": "(?:", "]": ")?"}
        parts = re.split(r"([A-Z]+|\[|\])", self.pattern)
        words = [".+" if part.isalpha() and part.isupper() else replaced.get(part, re.escape(part)) for part in parts]
        return re.fullmatch("".join(words) + "(?:-.+)?", name) is not None

    def problems(self, found: Iterable[str]) -> list[str]:
        """Return how the files of a folder, run.json apart, differ from the declared ones."""
        names = set(found)
        missing = [f"{name} is missing" for name in self.files if name not in names]
        return missing + [f"{name} is not declared" for name in sorted(names - {*self.files, *self.sometimes})]


def declaration(folders: Iterable[Folder], name: str) -> Folder | None:
    """Return the first of the folders whose pattern a name matches."""
    return next((folder for folder in folders if folder.matches(name)), None)
