"""What networks are called in the tables of compare: where several have one name, in what their runs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from deeppatch.cli.compare.loading import Member
from deeppatch.cli.naming import INCIDENTAL

MOST_NAMED = 4  # settings in a name
WORDS = {"filter_seed": "seed", "fs_method": "filters by", "max_clean_drop": "drop"}  # that are not the option's own
COUNTED = ("epochs", "passes")
STAGE, HASH = "^(correct|switch|relearn|decompose)-", "-[0-9a-f]{6}$"  # of the name of a folder


def by_name(found: Sequence[Member], base: str) -> dict[str, Member]:
    """Return networks by name, which is not that of the base.

    Where several would have one, what tells them apart stands behind it in brackets: the readable name of the run's
    folder; else the settings in which the runs differ, their own or those of what they have read; else the folder.
    """
    plain = [member.source.prefix + member.name for member in found]
    runs = [re.sub(STAGE, "", member.source.called) for member in found]
    short = [re.sub(HASH, "", run) for run in runs]
    words = differences([_settings(member.source.record) for member in found], _in_brackets(plain, short))
    both = [f"{run}, {word}" if word else run for run, word in zip(short, words, strict=True)]
    levels = [plain, *(_in_brackets(plain, each) for each in (short, words, both, runs))]
    named: dict[str, Member] = {}
    for number, member in enumerate(found):
        choices = [level[number] for level in levels if level.count(level[number]) == 1]
        free = [name for name in choices if name != base and name not in named]
        named[free[0] if free else f"{levels[-1][number]} {len(named) + 1}"] = member
    return named


def differences(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return for each run in which settings it differs from those of the same name, such as `lr 0.001, 5 epochs`.

    >>> runs = [{"lr": 0.01, "crt_epoch": 20}, {"lr": 0.001, "crt_epoch": 5}, {"lr": 1}]
    >>> differences(runs, ["finetuned", "finetuned", "norms"])
    ['lr 0.01, 20 epochs', 'lr 0.001, 5 epochs', '']
    >>> differences([{"filter_seed": seed, "fs_method": "random"} for seed in (1, 2)], ["patched", "patched"])
    ['random filters, seed 1', 'random filters, seed 2']
    """
    found = []
    for own, name in zip(settings, names, strict=True):
        same = [other for other, called in zip(settings, names, strict=True) if called == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in same)]
        known = [key for key in differing if own[key] is not None]
        words = [_spelled(key, own[key]) for key in (known or differing)[:MOST_NAMED]]
        random = own.get("fs_method") == "random" and "filter_seed" in known
        found.append(", ".join((["random filters"] if random else []) + words))
    return found


def _settings(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a run, and those of what it has read where it has none of that name itself."""
    found = {key: each for key, each in (record or {}).get("settings", {}).items() if key not in INCIDENTAL}
    for read in (record or {}).get("consumed", {}).values():
        found = {**_settings(read), **found}
    return {key: found[key] for key in sorted(found, key=lambda key: (key != "filter_seed", key))}


def _spelled(key: str, value: Any) -> str:
    unit = next((unit for unit in COUNTED if key.rpartition("_")[2] in (unit, unit.removesuffix("s"))), None)
    if value is None:
        return f"default {unit or key.replace('_', ' ')}"
    if unit:
        return f"{value} {unit.removesuffix('s') if value == 1 and unit == 'epochs' else unit}"
    if isinstance(value, bool):
        return key.replace("_", " ") if value else f"no {key.replace('_', ' ')}"
    files = [PurePath(str(each)) for each in (value if isinstance(value, list) else [value])]
    text = " ".join(re.sub(f"{STAGE}|{HASH}", "", file.parent.name) or file.name for file in files)
    return f"{WORDS.get(key, key.replace('_', ' '))} {text}"


def _in_brackets(names: Sequence[str], words: Sequence[str]) -> list[str]:
    return [f"{name} ({each})" if each else name for name, each in zip(names, words, strict=True)]
