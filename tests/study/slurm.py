"""The commands of Slurm that Snakemake calls, played by processes of this machine: slurm.py COMMAND ARGUMENTS.

The folder STAND_IN_CLUSTER has the arguments, the name and the state of each job. What a node does is left to the job.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN_CLUSTER"])


def sbatch(words: list[str]) -> None:
    """Start a job, as --wrap says, and print its number."""
    number = str(1000 + len(list(FOLDER.glob("*.arguments"))))
    (FOLDER / f"{number}.arguments").write_text("\n".join(words))
    (FOLDER / f"{number}.name").write_text(words[words.index("--job-name") + 1])
    (FOLDER / f"{number}.state").write_text("RUNNING")
    log = Path(words[words.index("--output") + 1].replace("%j", number))
    log.parent.mkdir(parents=True, exist_ok=True)
    command = next(word for word in words if word.startswith("--wrap=")).removeprefix("--wrap=")
    with log.open("wb") as stream:
        subprocess.Popen(
            [sys.executable, __file__, "node", number, command], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=stream, env={**os.environ, "SLURM_JOB_ID": number},
        )  # fmt: skip
    print(number)


def node(words: list[str]) -> None:
    """Run a job and note how it ended; those that name what the file `broken` says fail at once."""
    number, command = words
    broken = FOLDER / "broken"
    fails = broken.exists() and broken.read_text() in command
    status = 1 if fails else subprocess.run(command, shell=True, check=False).returncode  # noqa: S602
    (FOLDER / f"{number}.state").write_text("FAILED" if status else "COMPLETED")


def srun(words: list[str]) -> None:
    """Become what is to run within a job."""
    rest = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    os.execvp(rest[0], rest)  # noqa: S606


def sacct(words: list[str]) -> None:
    """Print the number and the state of each job of a name."""
    for path in FOLDER.glob("*.name"):
        if path.read_text() == words[words.index("--name") + 1]:
            print(f"{path.stem}|{path.with_suffix('.state').read_text()}")


def sacctmgr(_words: list[str]) -> None:
    """Print the accounts of a user."""
    print("team")


def sinfo(_words: list[str]) -> None:
    """Print the partitions."""
    print("PARTITION\nshort*")


def scancel(words: list[str]) -> None:
    """Note that jobs are to end, which these do by themselves."""
    numbers = [word for word in words if re.fullmatch(r"\d+", word)]
    (FOLDER / "cancelled").write_text("\n".join(numbers))


if __name__ == "__main__":
    {each.__name__: each for each in (sbatch, node, srun, sacct, sacctmgr, sinfo, scancel)}[sys.argv[1]](sys.argv[2:])
