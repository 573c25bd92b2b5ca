"""Run one command of a study with -r, and link its run.json to where the study looks for it.

python workflow/scripts/job.py --record FILE [--read OPTION=RECORD ...] [--network RECORD ...] STAGE WORD ...

A file of an earlier run is named on the command line where it does not lie in the folder of a default run, in which
the command would look for it anyway: so the command is the one that a user would type, and finds its folder again.
Where another process makes the same run, as one that an interrupted study has left, this one waits for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import source  # noqa: F401
from exit_status import exit_status

from deeppatch.cli.locating import locate_all, roles, run_folder
from deeppatch.cli.main import guarded
from deeppatch.cli.naming import model_folder, readable_name
from deeppatch.cli.options import OPTION_NAMES, SCRIPTS, RepairOptions
from deeppatch.cli.parsing import parse_stage
from deeppatch.data import corruption_names
from deeppatch.errors import Busy
from deeppatch.lock import FolderLock
from deeppatch.storage import RECORD

WAIT = 2.0  # seconds between two looks at a folder that another process writes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and link its record; return the command's status."""
    given = parser().parse_args(arguments)
    return exit_status(lambda: run(given))


def run(given: argparse.Namespace) -> int:
    """Wait for others that make the same run, make it, and link its record."""
    if given.threads:
        os.environ |= {"DEEPPATCH_THREADS": str(given.threads), "OMP_NUM_THREADS": str(given.threads)}
    reads = dict(each.split("=", 1) for each in given.read)
    words = command(given.stage, given.words, reads, given.network)
    print(f"$ python src/{SCRIPTS[given.stage]}.py {' '.join(words)}", flush=True)
    wait_for_others(left_by(given.stage, words))
    if status := guarded(SCRIPTS[given.stage], words, RepairOptions.prefix):
        return status
    link(left_by(given.stage, words) / RECORD, given.record)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--record", type=Path, required=True, metavar="FILE", help="where run.json is linked to")
    found.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: one per core)")
    found.add_argument("--read", action="append", default=[], metavar="OPTION=RECORD", help="an earlier run to read")
    found.add_argument("--network", action="append", default=[], metavar="RECORD", help="a run to compare")
    found.add_argument("stage", choices=list(SCRIPTS))
    found.add_argument("words", nargs=argparse.REMAINDER, metavar="WORD", help="arguments of the command")
    return found


def command(stage: str, words: Sequence[str], reads: Mapping[str, str], networks: Sequence[str]) -> list[str]:
    """Return all arguments of a command: -r, and the files and folders of earlier runs where they must be named."""
    found = [os.path.relpath(Path(os.path.realpath(record)).parent) for record in networks] + [*words, "-r"]
    options = parsed(stage, found)
    for role in roles(stage, options).values():
        if role.option not in reads:
            continue
        file = Path(os.path.realpath(reads[role.option])).with_name(role.file)
        reader: Any = SimpleNamespace(**{**vars(options), **role.changes})
        if file.parent != (model_folder(options) / readable_name(role.stage, reader)).resolve():
            found += [f"--{OPTION_NAMES.get(role.option, role.option)}", os.path.relpath(file)]
    return found


def parsed(stage: str, words: Sequence[str]) -> Any:
    """Return a command's options as the stage sees them."""
    options = parse_stage(stage, words, RepairOptions.prefix)
    noise = getattr(options, "noise_type", corruption_names.DEFAULT)  # which the stages of chains do not have
    if corruption_names.parse(noise, getattr(options, "severity", None)).own:
        from deeppatch.cli.degradation import content_digest

        options = replace(options, degradation=content_digest(options))
    return options


def left_by(stage: str, words: Sequence[str]) -> Path:
    """Return the folder that a command leaves."""
    options = parsed(stage, words)
    return run_folder(stage, options, locate_all(stage, options))


def wait_for_others(folder: Path) -> None:
    """Return when no living process writes a folder."""
    said = False
    while True:
        lock = FolderLock(folder)
        try:
            lock.acquire()
        except Busy as error:
            print("" if said else f"waiting: {error}\n", end="", flush=True)
            said = True
            time.sleep(WAIT)
        else:
            lock.release()
            return


def link(record: Path, place: Path) -> None:
    """Make `place` a relative link to a record, in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.{os.getpid()}")
    new.symlink_to(os.path.relpath(record.resolve(), place.parent.resolve()))
    new.replace(place)


if __name__ == "__main__":
    sys.exit(main())
