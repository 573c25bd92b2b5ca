"""The names of degradations, and what a list of them stands for; nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from deeppatch.errors import UserError, closest

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
BENCHMARK = tuple(name for group, members in GROUPS.items() if group != "extra" for name in members)  # the 15 of means
COMMON = (*BENCHMARK, *GROUPS["extra"])
SEVERITIES = (1, 2, 3, 4, 5)
ALIASES = {"gaussian-blur": "gaussion"}
DEFAULT = "gaussion"
NAMES = (DEFAULT, *COMMON, "spatial")  # also the order of a list
LISTS = {**GROUPS, "all": BENCHMARK}
FOLDER, RELEASED = "folder:", "released:"
RESERVED = {"clean", "mean", "mixed", "append", "repair", "break"}  # columns of tables beside those of levels
HELP = (
    f"degradations, separated by commas: gaussion (six levels of Gaussian blur, also called gaussian-blur; not the "
    f"same as gaussian_blur), {', '.join(COMMON)}, spatial; groups: noise, blur, weather, digital, extra, and all (the "
    "15 that are not extra); package.module:function, a function of one's own, from the working directory; "
    "folder:PATH, degraded images of one's own; released:PATH, files of CIFAR-10-C, CIFAR-100-C or ImageNet-C (test "
    "images only)"
)
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Specification:
    """What a list of degradations stands for.

    Args:
        names: Each name once, in the order of `NAMES`; import paths, `folder:PATH` and `released:PATH` come last.
        severities: The severities of common corruptions and of `spatial`, ascending.
        given: The list as it was written, without spaces.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...] = SEVERITIES
    given: str = DEFAULT

    @property
    def stem(self) -> str:
        """The part of a folder's name that says which degradations these are; empty for the default."""
        if self.names == (DEFAULT,):
            return ""
        written = "+".join(map(_file_name, _shortened(self.names)))
        if len(written) > 40:
            digest = sha256(written.encode()).hexdigest()[:6]
            written = f"{_file_name(self.names[0])}+{len(self.names)}-{digest}"
        return written + ("" if self.severities == SEVERITIES else "-sev" + "".join(map(str, self.severities)))

    def without(self, held_out: str) -> Specification:
        """Return the specification without the types of another list, for training; UserError when none remains."""
        removed = self.held_out(held_out).names
        kept = tuple(name for name in self.names if name not in removed)
        if not kept:
            raise UserError(f"{held_out} held out of {self.given} leaves no degradation to train on")
        return Specification(kept, self.severities, ",".join(kept))

    def held_out(self, held_out: str) -> Specification:
        """Return the types of another list, which must be among these; UserError where one is not."""
        removed = parse(held_out).names
        if absent := sorted(set(removed) - set(self.names)):
            raise UserError(f"{', '.join(absent)} cannot be held out of {self.given}, which does not have it")
        return Specification(removed, self.severities, held_out)

    @property
    def own(self) -> tuple[str, ...]:
        """The names whose meaning files decide: functions, folders of images and released files."""
        return tuple(name for name in self.names if name not in NAMES)


def parse(text: str, severity: str | None = None) -> Specification:
    """Parse a list of degradations, such as `noise,jpeg_compression`, and of severities, such as `1,3` or `2..4`.

    Raises:
        UserError: When a name or a severity is unknown, or severities are given for what has none.

    >>> parse("jpeg_compression,noise,noise").names
    ('gaussian_noise', 'shot_noise', 'impulse_noise', 'jpeg_compression')
    >>> parse("fog", "2..4").stem
    'fog-sev234'
    """
    words = [word.strip() for word in text.split(",")]
    found = [name for word in words for name in _members(word, text)]
    order = {name: place for place, name in enumerate(NAMES)}
    unique = sorted(dict.fromkeys(found), key=lambda name: order.get(name, len(order)))
    if severity is not None and not any(map(_has_severities, unique)):
        raise UserError(f"severity {severity}: {text} has no severities; leave it out")
    return Specification(tuple(unique), severities(severity), ",".join(ALIASES.get(word, word) for word in words))


def on_command_line(text: str) -> str:
    """Return a list of degradations as options keep it: a group's name, or names in order."""
    specification = parse(text)
    return specification.given if specification.given in LISTS else ",".join(specification.names)


def folder(path: str) -> str:
    """Return the name of the images in a folder; UserError where it cannot be one."""
    if "," in path:
        raise UserError(f"{path}: a comma separates names of degradations; rename the folder")
    return on_command_line(FOLDER + path)


def severities_on_command_line(text: str) -> str | None:
    """Return severities as options keep them: ascending and separated by commas, and None for all."""
    found = severities(text)
    return None if found == SEVERITIES else ",".join(map(str, found))


def severities(text: str | None) -> tuple[int, ...]:
    """Return the severities that `1,3,5` or `1..5` stands for, ascending; all five for None."""
    if text is None:
        return SEVERITIES
    found: set[int] = set()
    for part in text.split(","):
        low, dots, high = part.strip().partition("..")
        ends = (low, high if dots else low)
        if not all(end.isdecimal() and int(end) in SEVERITIES for end in ends) or int(ends[0]) > int(ends[1]):
            raise UserError(f"severity {text}: give numbers from 1 to 5, such as 1,3,5 or 2..4")
        found |= set(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))


def is_function(word: str) -> bool:
    """Tell whether a name is an import path, package.module:function."""
    return not word.startswith((FOLDER, RELEASED)) and bool(_FUNCTION.fullmatch(word))


def has_severities(text: str) -> bool:
    """Tell whether a list of degradations names one that has severities."""
    return any(map(_has_severities, parse(text).names))


def _has_severities(name: str) -> bool:
    return name in COMMON or name == "spatial" or name.startswith(RELEASED)


def _shortened(names: Sequence[str]) -> list[str]:
    """Return names with whole groups in place of their members."""
    found, left = [], list(names)
    for group, members in (("all", BENCHMARK), *GROUPS.items()):
        if len(members) > 1 and set(members) <= set(left):
            found.append(group)
            left = [name for name in left if name not in members]
    return [each for name in [*names] for each in _first_of(name, found, left)]


def _first_of(name: str, groups: Sequence[str], left: Sequence[str]) -> Sequence[str]:
    """Return a name that is left, or the group whose first member it is."""
    return [name] if name in left else [group for group in groups if LISTS[group][0] == name]


def _members(word: str, text: str) -> Sequence[str]:
    name = ALIASES.get(word, word)
    if name in LISTS:
        return LISTS[name]
    if name in NAMES or is_function(name) or (name.startswith((FOLDER, RELEASED)) and name.partition(":")[2]):
        return (name,)
    if not word:
        raise UserError(f"{text or 'an empty list'}: a name is missing; write names of degradations between commas")
    known = [*NAMES, *LISTS]
    guess = closest(word.replace("-", "_"), known)
    starting = [each for each in known if each.startswith(word.lower())]
    guess = guess or (f" (did you mean {starting[0]}?)" if word and len(starting) == 1 else "")
    raise UserError(f"there is no corruption called {word}{guess}; choose from {', '.join(known)}")


def _file_name(name: str) -> str:
    """Return a name without characters that folders' names should not have."""
    kind, colon, detail = name.partition(":")
    if kind + colon in (FOLDER, RELEASED):
        return f"{kind}-" + re.sub(r"[^\w.-]", "-", detail.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^\w.-]", "-", name)
