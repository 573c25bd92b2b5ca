"""A disk that is full after so many bytes: one line, earlier files unharmed, and -r goes on to the same bytes."""

from __future__ import annotations

import os
import shutil

import forked
import moments
import pytest
from workshop import LINES, difference, tree_of

from deeppatch import storage

pytestmark = pytest.mark.campaign

PAGE = os.sysconf("SC_PAGE_SIZE")
ON_A_SMALL_DISK = ("pretrain", "correct-finetune", "modularize-ga", "relearn")


@pytest.mark.parametrize("name", LINES)
def test_a_disk_that_is_full_after_some_bytes(workshop, draw, count, name):
    workshop.restore(name)
    before = tree_of(workshop.output)
    size = draw.randint(0, max(1, written(workshop, name)))
    ended = workshop.start(name, moments.full_after(size)).wait()
    wrong = refusal(ended) or harm(before, tree_of(workshop.output))
    wrong = wrong or (ended.fault or "" if (ended := workshop.resume(name)).status else workshop.difference(name))
    count("full disk", name, f"after {size} bytes", "failed" if wrong else "identical", wrong, ended.seconds)


@pytest.mark.parametrize("name", [name for name in ON_A_SMALL_DISK if name in LINES])
def test_a_small_disk(workshop, draw, count, name, monkeypatch):
    """A file system in memory with room for what there is and a little more, where this process may mount one."""
    workshop.restore(name)
    before = tree_of(workshop.output)
    # each file takes whole pages
    used = sum(-(-path.stat().st_size // PAGE) * PAGE for path in workshop.output.rglob("*") if path.is_file())
    room = used + draw.randint(0, max(1, written(workshop, name) // 2)) + 2**16
    disk = workshop.output.with_name("disk")
    disk.mkdir(exist_ok=True)
    with forked.mounted(disk, room) as allowed:
        if not allowed:
            pytest.skip("mounting needs the superuser")
        shutil.copytree(workshop.output, disk, dirs_exist_ok=True)
        shutil.rmtree(workshop.output)
        workshop.output.symlink_to(disk)

        def no_check() -> None:
            storage.FREE_BYTES = 0  # the check before the work would answer in place of the disk

        try:
            ended = workshop.start(name, no_check).wait()
            wrong = (refusal(ended) or harm(before, tree_of(disk))) if ended.status else ""
        finally:
            workshop.output.unlink()
            shutil.copytree(disk, workshop.output, symlinks=True)
    whole = ended.status == 0
    wrong = wrong or (ended.fault or "" if (ended := workshop.resume(name)).status else workshop.difference(name))
    moment = f"a disk of {room} bytes" + (" was enough" if whole else "")
    count("full disk", name, moment, "failed" if wrong else "identical", wrong, ended.seconds)


def written(workshop, name: str) -> int:
    """Return the number of bytes that a stage leaves."""
    after = workshop.place / f"after-{name}"
    return sum((after / path).stat().st_size for path in new_files(workshop, name))


def new_files(workshop, name: str) -> set[str]:
    """Return the files that a stage leaves."""
    return workshop.done[name].tree.keys() - tree_of(workshop.place / f"before-{name}").keys()


def refusal(ended) -> str:
    """Return what is wrong with the answer to a full disk, or nothing."""
    return ended.fault or ("" if ended.err.startswith("error: no space is left for ") else ended.err)


def harm(before: dict, now: dict) -> str:
    """Return what became of files that were there before."""
    return difference(before, {name: value for name, value in now.items() if name in before})
