"""Run a study: every command of a matrix that has not been run, as many at a time as cores and memory allow.

python workflow/scripts/study.py CONFIG [--only PATTERN ...] [--dry-run] [--list] [--cores N] [--snakemake ...]

CONFIG is a name in workflow/config, such as demo, or a file. What is finished is not run again, and an interrupted run
is continued: start the same command again. A job that fails does not stop those that do not need it. What stands behind
`--snakemake` goes to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matrix
import yaml
from exit_status import exit_status

from deeppatch.cli.parsing import check_files
from deeppatch.errors import Busy, UserError, check_positive
from deeppatch.lock import FolderLock

WORKFLOW = Path(__file__).resolve().parents[1]
CONFIGURATIONS, PROFILES = WORKFLOW / "config", WORKFLOW / "profiles"
COLLECTED = "collected.json"  # in the folder of a study, a list of the tables and the picture
SHARE_OF_MEMORY = 0.9  # of the machine, for all jobs together
DEFAULT_OUTPUT = "output"
PLACEHOLDER = "IMAGE"  # in the job.yaml of workflow/profiles


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study and return Snakemake's status, or 2 for a mistake of the user, and 130 after Ctrl-C."""
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
    found.add_argument("--list", action="store_true", help="print all jobs of the study with their commands")
    found.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="threads in all")
    found.add_argument("--memory", type=int, default=memory(), metavar="MB", help="memory for all jobs together")
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
    check_positive(**{"--cores": options.cores, "--memory": options.memory})
    file = file_of(options.config)
    configuration = matrix.read(file)
    given = {name: getattr(options, name) for name in ("output_dir", "data_dir") if getattr(options, name)}
    configuration |= given
    jobs = matrix.jobs(configuration)
    if options.list:
        for job in jobs.values():
            print(f"{job.key}\n    {job.rule} {' '.join(job.words)}")
        return 0
    for job in jobs.values():
        check_files(job.options)
    folder = Path(configuration.get("output_dir", DEFAULT_OUTPUT), "studies", file.stem)
    targets = chosen(jobs, options.only, folder)
    settings = {"study": file.stem, "file": str(file), **given}
    command = snakemake(options, file, settings, targets)
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
    """Run Snakemake and return its status; after Ctrl-C, which reaches it too, wait until it has ended its jobs."""
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


def file_of(name: str) -> Path:
    """Return the file of a configuration that is named or given."""
    own = CONFIGURATIONS / f"{name}.yaml"
    if own.is_file():
        return Path(os.path.relpath(own))
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
    raise UserError(f"{name}: no such configuration; choose from {known}, or give a YAML file")


def chosen(jobs: Mapping[str, matrix.Job], patterns: Sequence[str], folder: Path) -> list[str]:
    """Return the records of the jobs that some pattern names; none where there is no pattern, which means all."""
    found: list[str] = []
    for pattern in patterns:
        keys = fnmatch.filter(jobs, pattern)
        if not keys:
            raise UserError(f"--only {pattern}: no job of this study has such a name; --list prints them")
        found += [f"{folder}/{key}/run.json" for key in keys]
    return list(dict.fromkeys(found))


def snakemake(
    options: argparse.Namespace, file: Path, settings: Mapping[str, str], targets: Sequence[str]
) -> list[str]:
    """Return the command that runs a study."""
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(WORKFLOW / "Snakefile")]
    command += ["--configfile", str(file), "--config", *(f"{name}={value}" for name, value in settings.items())]
    # a record is newer than those it was made from, and a job with other words has another name
    command += ["--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going", "--nolock"]
    if options.profile:
        command += cluster(profile_of(options.profile), check=not options.dry_run)
    else:
        command += ["--cores", str(options.cores), "--resources", f"mem_mb={options.memory}"]
    return [*command, *(["--dry-run"] * options.dry_run), *(["--quiet"] * options.quiet), *options.snakemake]


def profile_of(name: str) -> Path:
    """Return the folder of a profile that is named or given."""
    for folder in (PROFILES / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    known = ", ".join(sorted(path.name for path in PROFILES.iterdir()))
    raise UserError(f"--profile {name}: choose from {known}, or give a folder with a config.yaml")


def cluster(profile: Path, *, check: bool) -> list[str]:
    """Return the options of Snakemake for a profile; with a job.yaml, which `check` looks at, it is of Kubernetes."""
    found = ["--workflow-profile", str(profile)]
    if (job := profile / "job.yaml").is_file():
        if check:
            check_kubernetes(job)
        pods = str(WORKFLOW / "scripts" / "pods.py")
        found += ["--cluster-generic-submit-cmd", shlex.join([sys.executable, pods, "submit", str(job)])]
        found += ["--cluster-generic-status-cmd", shlex.join([sys.executable, pods, "status"])]
        found += ["--cluster-generic-cancel-cmd", pods]
    return found


def check_kubernetes(job: Path) -> None:
    """Raise UserError where jobs cannot be created from a manifest."""
    try:
        image = yaml.safe_load(job.read_bytes())["spec"]["template"]["spec"]["containers"][0]["image"]
    except (yaml.YAMLError, LookupError, TypeError):
        raise UserError(f"{job}: no manifest of a job of Kubernetes that names the image of its container") from None
    if image == PLACEHOLDER:
        raise UserError(f"{job}: write your image and claim into it, or into a copy: --profile FOLDER")
    if shutil.which("kubectl") is None:
        raise UserError("kubectl, which creates the jobs, is not on PATH; install it")


def memory() -> int:
    """Return the memory in MB that all jobs on this machine may take."""
    return int(SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)


if __name__ == "__main__":
    sys.exit(main())
