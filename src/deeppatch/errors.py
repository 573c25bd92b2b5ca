"""What a user can get wrong; every message is one line that says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend; commands print it as one line and exit with status 2."""


class MissingArtifact(UserError):
    """An earlier stage has not left the file that this one reads."""

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(f"{path} is missing; make it with: {command}")


class StaleArtifact(UserError):
    """A file under output/ is damaged, or was made from other inputs than the ones at hand."""


class OtherBase(StaleArtifact):
    """A correction was made for other base weights than the ones at hand."""

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(f"{path} was trained on other base weights; make one for these with: {command}")


class WrongWeights(UserError):
    """A weights file is damaged or does not fit the network."""


class NoNetwork(UserError):
    """A download is needed and cannot be made."""


class DataProblem(UserError):
    """A data set is unknown, absent, damaged or too small for what is asked."""


class RankLost(UserError):
    """One of the processes that share a run has ended, so that the others cannot go on."""


class Contradictions(UserError):
    """Options that cannot stand together, all of them reported at once."""

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("; ".join(problems))


def closest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the one of `known` that a mistyped word clearly resembles, or nothing."""
    names = {name.lstrip("-").lower(): name for name in known}
    found = difflib.get_close_matches(word.lstrip("-").lower(), names, 1, 0.7)
    return f" (did you mean {names[found[0]]}?)" if found else ""
