"""Run a study: every command of a matrix that has not been run, as many at a time as cores and memory allow.

python workflow/scripts/study.py CONFIG [--only PATTERN ...] [--dry-run] [--list] [--cores N] [--snakemake ...]

CONFIG is a name in workflow/config, such as demo, or a file. What is finished is not run again, and an interrupted run
is continued: start the same command again. A job that fails does not stop those that do not need it. What stands behind
`--snakemake` goes to it.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import clusters
import matrix
import schema
import source  # noqa: F401
from exit_status import exit_status

from deeppatch.cli.options import SCRIPTS
from deeppatch.cli.parsing import check_files
from deeppatch.errors import Busy, UserError, check_positive
from deeppatch.lock import FolderLock

WORKFLOW = Path(__file__).resolve().parents[1]
CONFIGURATIONS = WORKFLOW / "config"
COLLECTED = "collected.json"  # in the folder of a study, a list of the tables and the picture
SHARE_OF_MEMORY = 0.9  # of the machine, for all jobs together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study and return Snakemake's status, or 2 for a mistake of the user, and 130 after Ctrl-C or SIGTERM."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("config", metavar="CONFIG", help="a name in workflow/config, or a YAML file")
    found.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="only jobs of these names, such as 'correct/*-patch-*'"
    )
    found.add_argument("-n", "--dry-run", action="store_true", help="say what would be run")
    found.add_argument("--quiet", action="store_true", help="print no more than a summary")
    found.add_argument("--list", action="store_true", help="print the jobs with their commands")
    found.add_argument("--cores", type=int, metavar="N", help="threads of all jobs on this machine together")
    found.add_argument("--memory", type=int, metavar="MB", help="memory of all jobs on this machine together")
    found.add_argument(
        "--profile", metavar="NAME", help="run jobs on a cluster: slurm, kubernetes, or a folder like theirs"
    )
    found.add_argument("--output_dir", metavar="DIR", help="artifacts (default: the configuration's, else output)")
    found.add_argument("--data_dir", metavar="DIR", help="data sets (default: the configuration's, else data)")
    found.add_argument(
        "--snakemake", nargs=argparse.REMAINDER, default=[], metavar="OPTION", help="what follows goes to Snakemake"
    )
    return found


def run(options: argparse.Namespace) -> int:
    """Check the configuration, take the study's lock, run Snakemake, and say what was written."""
    profile = checked_profile(options)
    file = file_of(options.config)
    configuration = schema.read(file)
    given = {name: getattr(options, name) for name in ("output_dir", "data_dir")}
    settings = {"file": str(file), **{name: folder for name, folder in given.items() if folder is not None}}
    configuration |= settings
    jobs = matrix.jobs(configuration)
    keys = chosen(jobs, options.only)
    if options.list:
        for job in [jobs[key] for key in keys or jobs]:
            words = shlex.join([*job.words, *matrix.places(configuration), "-r"])
            print(f"{job.key}\n    python src/{SCRIPTS[job.rule]}.py {words}")
        return 0
    for job in jobs.values():
        check_files(job.options)
    folder = Path(matrix.folder(configuration))
    targets = [f"{folder}/{key}/run.json" for key in keys]
    command = snakemake(options, profile, settings, targets)
    if options.dry_run:
        return ended(command)
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except Busy as error:
        raise UserError(f"this study runs already: {error}") from None
    try:
        status = ended(command)
    finally:
        lock.release()
    collected = folder / COLLECTED
    if status == 0 and not targets and collected.is_file():  # Snakemake may have been told to end before
        print("\n".join(f"written: {path}" for path in json.loads(collected.read_bytes())))
    return status


def ended(command: Sequence[str]) -> int:
    """Run Snakemake and return its status; after Ctrl-C, which reaches it too, wait until it has ended its jobs.

    SIGTERM, as `kill` and batch systems send it, is passed on to Snakemake and its jobs as Ctrl-C.
    """
    signal.signal(signal.SIGTERM, pass_on)
    interrupted = False
    with subprocess.Popen(command) as process:  # noqa: S603
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return status


def pass_on(number: int, _frame: FrameType | None) -> None:
    """Do to all processes under this one what Ctrl-C in a terminal does, and raise KeyboardInterrupt."""
    import psutil  # which comes with Snakemake

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is, for them too, in the background of a script
        number = signal.SIGINT
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    raise KeyboardInterrupt


def checked_profile(options: argparse.Namespace) -> Path | None:
    """Return the folder of the profile for a cluster, if any; UserError where jobs cannot be run as options say."""
    there = {f"--{name}": value for name in ("cores", "memory") if (value := getattr(options, name)) is not None}
    check_positive(**there)
    if ours := [
        word for word in options.snakemake if word.split("=")[0] in ("--config", "-C", "--configfile", "--configfiles")
    ]:
        raise UserError(f"--snakemake {ours[0]}: write what it says into the configuration")
    if options.profile is None:
        return None
    if there:
        raise UserError(f"{' and '.join(there)} are of this machine, but --profile runs jobs elsewhere; leave one out")
    profile = clusters.profile_of(options.profile)
    if not options.dry_run and not options.list:
        clusters.check(profile)
    return profile


def file_of(name: str) -> Path:
    """Return the file of a configuration that is named or given."""
    own = CONFIGURATIONS / f"{name}.yaml"
    if own.is_file():
        return Path(os.path.relpath(own))
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
    raise UserError(f"{name}: no such configuration; choose from {known}, or give a YAML file")


def chosen(jobs: Mapping[str, matrix.Job], patterns: Sequence[str]) -> list[str]:
    """Return the keys of the jobs that some pattern names; none where there is no pattern, which means all."""
    found: list[str] = []
    for pattern in patterns:
        keys = [pattern] if pattern in jobs else fnmatch.filter(jobs, pattern)
        if not keys:
            raise UserError(f"--only {pattern}: no job of this study has such a name; --list prints them")
        found += keys
    return list(dict.fromkeys(found))


def snakemake(
    options: argparse.Namespace, profile: Path | None, settings: Mapping[str, str], targets: Sequence[str]
) -> list[str]:
    """Return the command that runs a study."""
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(WORKFLOW / "Snakefile")]
    command += ["--configfile", settings["file"], "--config", f"given={json.dumps(settings, ensure_ascii=False)}"]
    # a record is newer than those it was made from, and a job with other words has another name
    command += ["--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going", "--nolock"]
    if profile is not None:
        command += clusters.options(profile)
    else:
        cores = options.cores or len(os.sched_getaffinity(0))
        command += ["--cores", str(cores), "--resources", f"mem_mb={options.memory or memory()}"]
    return [
        *command,
        *(["--dry-run"] * options.dry_run),
        *(["--quiet", "rules"] if options.quiet else []),
        *options.snakemake,
    ]


def memory() -> int:
    """Return the memory in MB that all jobs on this machine may take."""
    return int(SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)


if __name__ == "__main__":
    sys.exit(main())
