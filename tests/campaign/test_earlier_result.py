"""Every stage run again over a finished one with other content, killed at ten points: that stays unharmed."""

from __future__ import annotations

import shutil

import moments
import pytest
from workshop import LINES, difference, tree_of

from deeppatch.cli.main import COMMANDS
from deeppatch.stage import Stage

pytestmark = pytest.mark.campaign

POINTS = 10


@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.parametrize("name", LINES)
def test_a_killed_run_over_a_finished_one_leaves_that_whole(workshop, other_workshop, count, name, point):
    """The last point is the last file operation; there -r ends with the new bytes, too."""
    place = other_workshop
    place.restore(name)
    # hashes in names are of the weights that were read: the earlier result lies where the new one will
    folders, theirs = (own_folders(each, name) for each in (place, workshop))
    assert len(folders) == len(theirs)
    for folder, other in zip(folders, theirs, strict=True):
        shutil.copytree(workshop.place / f"after-{name}" / other, place.output / folder, dirs_exist_ok=True)
    earlier, whole = folders_in(tree_of(place.output), folders), folders_in(place.done[name].tree, folders)
    assert all(earlier[folder] != whole[folder] for folder in folders), "what is there is another result"
    operation = max(1, place.done[name].operations * (point + 1) // POINTS)
    ended = place.start(name, moments.killed_at(operation)).wait()
    found = folders_in(tree_of(place.output), folders)
    wrong = [
        folder
        for folder in folders
        if found[folder] not in (earlier[folder], whole[folder]) or not readable(place.output, folder)
    ]
    detail = "; ".join(f"{each}: {difference(earlier[each], found[each])}" for each in wrong)
    if point == POINTS - 1 and not wrong:
        ended = place.resume(name)
        detail = (ended.fault or "") if ended.status else difference(place.done[name].tree, tree_of(place.output))
    moment = f"at file operation {operation} of about {place.done[name].operations}"
    count("earlier result", name, moment, "failed" if detail else "unharmed", detail, ended.seconds)


def own_folders(place, name: str) -> list[str]:
    """Return the folders of the stage itself, without those of weak models that compose trains only where none are."""
    stage = COMMANDS[LINES[name].split()[0]]
    return [each for each in place.folders_of(name) if place.done[name].tree[f"{each}/run.json"]["stage"] == stage]


def folders_in(tree: dict, folders: list[str]) -> dict[str, dict]:
    """Return the files of each folder."""
    return {
        folder: {name: value for name, value in tree.items() if name.startswith(f"{folder}/")} for folder in folders
    }


def readable(output, folder: str) -> bool:
    """Tell whether the record of a run and its files agree, as later stages ask it."""
    stage = Stage(output, output / folder, {"settings": None}, writes=False)
    record = stage._recorded(output / folder / "run.json", "")[0]
    stage.facts["settings"] = record["settings"]
    return stage.finished() is not None
