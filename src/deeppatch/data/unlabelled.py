"""Read unlabelled images from a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import Tensor

from deeppatch.data.files import Files
from deeppatch.data.folders import endings, list_files, not_utf8, tell_passed_over
from deeppatch.data.scaling import Scaling
from deeppatch.errors import DataProblem


def read_unlabelled(folder: Path, scaling: Scaling) -> tuple[list[str], Tensor]:
    """Return the names of all images under a folder, sorted and relative to it, and their pixels (N, 3, H, W).

    Images become RGB of 8 bits; DataProblem when the folder is missing or has none, or where one cannot be read.
    """
    if not folder.is_dir():
        raise DataProblem(
            f"{folder} is no folder; give one of images without labels, or let annotate simulate one with --bias"
        )
    passed_over: Counter[str] = Counter()
    files = sorted(map(Path, list_files(folder, passed_over)))
    tell_passed_over(folder, passed_over)
    if not files:
        raise DataProblem(f"{folder} holds no image ({', '.join(endings())}); put those to choose from there")
    names = [file.relative_to(folder).as_posix() for file in files]
    if nameless := not_utf8(names):
        raise DataProblem(
            f"{folder}: names are not UTF-8, so that no table of labels can hold them: {', '.join(nameless)}; rename "
            "these files"
        )
    return names, Files([str(file) for file in files], scaling)[:]
