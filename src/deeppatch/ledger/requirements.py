"""Requirements that a repaired network must meet, such as `clean>=-0.2`; nothing here imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deeppatch.data.corruption_names import BENCHMARK, COMMON, DEFAULT, GROUPS, SEVERITIES, Specification
from deeppatch.errors import UserError, closest

BLUR_LEVELS = 6  # of gaussion
_FORM = re.compile(r"\s*([^<>=]+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*")
_MET = {
    ">=": lambda value, bound: value >= bound, "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound, "<": lambda value, bound: value < bound,
}  # fmt: skip
FORM = "write NAME>=NUMBER or NAME<=NUMBER, such as clean>=-0.2, blurred>=+5, fog:3>=0, flips<=1, bytes<=200000"


@dataclass(frozen=True)
class Requirement:
    """A bound on one number of a network.

    Args:
        name: What is bounded: `clean`, `mixed`, a mean over views, a group or a type (the accuracy gained over the
            base, in points); `flips` (newly wrong images of the mixed stream, in percent of all); `bytes` (what is
            stored beside the base).
        severity: The severity of a type; 0 for the mean over its severities, and for everything else.
        comparison: `>=`, `<=`, `>` or `<`.
        bound: The number.
    """

    name: str
    severity: int
    comparison: str
    bound: float

    def __str__(self) -> str:
        sign = "" if self.name in ("flips", "bytes") else "+"
        return f"{self.subject}{self.comparison}{self.bound:{sign}g}"

    @property
    def subject(self) -> str:
        """What is bounded, as the user writes it."""
        return f"{self.name}:{self.severity}" if self.severity else self.name

    @property
    def is_floor(self) -> bool:
        """Whether the number must not be too low; else it must not be too high."""
        return self.comparison.startswith(">")

    def met_by(self, value: float) -> bool:
        """Tell whether a number meets the requirement; one that is missing (NaN) does not."""
        return bool(_MET[self.comparison](value, self.bound))


@dataclass(frozen=True)
class Judgement:
    """Whether a requirement is met: the estimate, its interval, and the number that was compared with the bound."""

    requirement: Requirement
    estimate: float
    low: float
    high: float
    compared: float

    @property
    def met(self) -> bool:
        """Whether the requirement is met."""
        return self.requirement.met_by(self.compared)

    def __str__(self) -> str:
        unit = {"flips": " %", "bytes": ""}.get(self.requirement.name, " points")
        sign = "" if self.requirement.name in ("flips", "bytes") else "+"
        if self.requirement.name == "bytes":
            return f"{self.requirement}: {self.estimate:.0f}"
        interval = f"{self.low:{sign}.2f} to {self.high:{sign}.2f}"
        counted = "" if self.compared == self.estimate else f", of which {self.compared:{sign}.2f} counts"
        return f"{self.requirement}: {self.estimate:{sign}.2f}{unit} ({interval}{counted})"


def requirement(text: str) -> Requirement:
    """Parse a requirement.

    Raises:
        UserError: When it is not a name, a comparison and a number.

    >>> requirement("fog:3 >= +1.5")
    Requirement(name='fog', severity=3, comparison='>=', bound=1.5)
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise UserError(f"{text!r} is no requirement: {FORM}")
    name, comparison, number = form.groups()
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UserError(f"{text!r}: {number} is no number; {FORM}")
    stem, colon, severity = name.rpartition(":")
    if colon and severity.isdecimal() and int(severity) > 0:
        return Requirement(stem, int(severity), comparison, bound)
    return Requirement(name, 0, comparison, bound)


def known_names(specification: Specification, *, held_out: bool = False) -> dict[str, tuple[int, ...]]:
    """Return what can be required of a ledger over these degradations, with the severities of each.

    `held_out` says whether some of them are held out, so that there is a mean over these, too.

    >>> from deeppatch.data.corruption_names import parse
    >>> list(known_names(parse("gaussion,fog")))
    ['clean', 'mixed', 'degraded', 'flips', 'bytes', 'gaussion', 'fog', 'weather', 'blurred']
    """
    found: dict[str, tuple[int, ...]] = dict.fromkeys(("clean", "mixed", "degraded", "flips", "bytes"), ())
    for name in specification.names:
        common = name in COMMON or name == "spatial"
        found[name] = specification.severities if common else (1,)
        found |= {group: () for group, members in GROUPS.items() if name in members}
    if DEFAULT in found:
        found |= {DEFAULT: tuple(range(1, BLUR_LEVELS + 1)), "blurred": ()}
    if any(name.startswith("released:") for name in specification.names):
        found |= {name: SEVERITIES for name in COMMON} | {group: () for group in GROUPS} | {"all": ()}
    if set(BENCHMARK) <= found.keys():
        found["all"] = ()
    return found | ({"held out": ()} if held_out else {})


def check_names(requirements: Sequence[Requirement], known: Mapping[str, Sequence[int]], *, own: bool = False) -> None:
    """Raise UserError for a requirement on something that will not be measured.

    `own` says that there are degradations whose names are known only when they are read.
    """
    for each in requirements:
        if each.name not in known and not own:
            raise UserError(
                f"{each}: {each.name} is not measured{closest(each.name, known)}; choose from {', '.join(known)}, or "
                "name more degradations with -n"
            )
        if each.severity and each.name in known and each.severity not in known[each.name]:
            there = ", ".join(map(str, known[each.name])) or "none"
            raise UserError(f"{each}: {each.name} has no severity {each.severity}; there are: {there}")


def judge(
    requirements: Sequence[Requirement],
    numbers: Mapping[tuple[str, int], tuple[float, float, float]],
    *,
    confident: bool = False,
) -> list[Judgement]:
    """Compare a network's numbers with requirements.

    Args:
        requirements: The requirements.
        numbers: Estimate, lower and upper bound by name and severity, in the units of `Requirement`.
        confident: Whether the end of the 95 % interval that is worse must meet the requirement: the lower end where a
            number must not be too low, the upper end where it must not be too high.

    Raises:
        UserError: When a number was not measured.
    """
    found = []
    for each in requirements:
        if (each.name, each.severity) not in numbers:
            there = ", ".join(f"{name}:{severity}" if severity else name for name, severity in numbers)
            raise UserError(f"{each}: {each.subject} was not measured of this network; there are {there}")
        estimate, low, high = numbers[each.name, each.severity]
        worse = low if each.is_floor else high
        found.append(Judgement(each, estimate, low, high, worse if confident else estimate))
    return found
