"""Errors for mistakes of the user; every message is one line that says what to do next."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can correct; commands print it as one line and exit with status 2."""


class RequirementsBroken(Exception):
    """A network does not meet what was required of it; commands print a line for each and exit with status 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__("\n".join(f"broken: {line}" for line in lines))


def check_positive(**numbers: float) -> None:
    """Raise UserError unless all numbers are finite and above 0; keywords are their names in the message."""
    if wrong := [f"{name}={number}" for name, number in numbers.items() if not 0 < number < math.inf]:
        raise UserError(f"{', '.join(wrong)}: give a number above 0")


def check_counts(**numbers: object) -> None:
    """Raise UserError unless all numbers are whole and at least 1; keywords are their names in the message."""
    wrong = [f"{name}={number!r}" for name, number in numbers.items() if not _is_whole(number) or int(number) < 1]  # type: ignore[call-overload]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: give a whole number, at least 1")


def check_between(least: float, most: float, **numbers: float) -> None:
    """Raise UserError unless all numbers are finite and from `least` to `most`; keywords are their names.

    >>> check_between(0, 1, share=0.5)
    """
    if wrong := [f"{name}={number!r}" for name, number in numbers.items() if not _lies(least, number, most)]:
        allowed = f"{least:g} or more" if most == math.inf else f"a number from {least:g} to {most:g}"
        raise UserError(f"{', '.join(wrong)}: give {allowed}")


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _lies(least: float, number: object, most: float) -> bool:
    return isinstance(number, Real) and least <= float(number) <= most and math.isfinite(number)


class MissingArtifact(UserError):
    """A file of an earlier stage is missing."""

    def __init__(self, path: Path, command: str, others: str = "") -> None:
        """Create the message from the file, the command that makes it, and finished runs that differ."""
        there_are = f"; finished runs differ: {others}" if others else ""
        super().__init__(f"{path} is missing{there_are}; make it with: {command}")


class StaleArtifact(UserError):
    """A file is damaged, or was made from other inputs than the current ones."""


class Busy(UserError):
    """Another process writes the folder that this one would write."""

    def __init__(self, folder: Path, process: int, host: str) -> None:
        super().__init__(
            f"{folder} is being written by process {process} on {host}; wait until it has ended, or choose another "
            "--output_dir"
        )


class OtherBase(StaleArtifact):
    """A file was made for other base weights than the current ones."""

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(f"{path} was trained on other base weights; make one for these with: {command}")


class WrongWeights(UserError):
    """A weights file is damaged or does not fit the network."""


class DownloadFailed(UserError):
    """A file is absent and cannot be downloaded."""


class DataProblem(UserError):
    """A data set is unknown, absent, damaged or too small."""


class RankLost(UserError):
    """One of the processes of a run has ended, so that the others cannot continue."""


class Contradictions(UserError):
    """Options that contradict each other or are out of range, all reported at once."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("; ".join(problems))


def closest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the known word that a mistyped one resembles, or an empty string."""
    names = {name.lstrip("-").lower(): name for name in known}
    found = difflib.get_close_matches(word.lstrip("-").lower(), names, 1, 0.7)
    return f" (did you mean {names[found[0]]}?)" if found else ""
