"""Profiles of Snakemake for clusters: which one is meant, whether it can start jobs, and what Snakemake is told."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pods
import schema
import source  # noqa: F401

from deeppatch.errors import UserError

WORKFLOW = Path(__file__).resolve().parents[1]
PROFILES = WORKFLOW / "profiles"
COMMANDS = {"slurm": "sbatch", "cluster-generic": "kubectl"}  # that submit jobs, by the executor of a profile
BUILT_IN = ("local", "dryrun", "touch")  # executors of Snakemake itself
MANIFEST = "job.yaml"  # of a profile for Kubernetes
PLACEHOLDERS = ("IMAGE", "CLAIM")  # in that of workflow/profiles
EXAMPLE = {"threads": 1, "resources": {"mem_mb": 1, "runtime": 1}}


def profile_of(name: str) -> Path:
    """Return the folder of a profile that is named or given."""
    for folder in (PROFILES / name, Path(name)):
        if name and (folder / "config.yaml").is_file():
            return folder.resolve()
    known = ", ".join(sorted(path.name for path in PROFILES.iterdir()))
    raise UserError(f"--profile {name or repr(name)}: choose from {known}, or give a folder with a config.yaml")


def options(profile: Path) -> list[str]:
    """Return the options of Snakemake for a profile; one with a job.yaml is of Kubernetes."""
    found = ["--workflow-profile", str(profile)]
    if (manifest := profile / MANIFEST).is_file():
        script = str(WORKFLOW / "scripts" / "pods.py")
        found += ["--cluster-generic-submit-cmd", shlex.join([sys.executable, script, "submit", str(manifest)])]
        found += ["--cluster-generic-status-cmd", shlex.join([sys.executable, script, "status"])]
        found += ["--cluster-generic-cancel-cmd", script]
    return found


def check(profile: Path) -> None:
    """Raise UserError where this machine cannot start the jobs of a profile."""
    settings = schema.loaded(profile / "config.yaml")
    executor = settings.get("executor") if isinstance(settings, dict) else None
    if not isinstance(executor, str):
        raise UserError(f"{profile / 'config.yaml'} names no executor, as workflow/profiles/slurm/config.yaml does")
    package = f"snakemake-executor-plugin-{executor}"
    if executor not in BUILT_IN and importlib.util.find_spec(package.replace("-", "_")) is None:
        raise UserError(f"the profile needs the package {package}; install it with: pip install {package}")
    manifest = profile / MANIFEST
    if manifest.is_file():
        check_manifest(manifest)
        executor = "cluster-generic"
    elif executor == "cluster-generic":
        return  # with commands of its own
    if (command := COMMANDS.get(executor)) and shutil.which(command) is None:
        raise UserError(f"{command}, which submits the jobs, is not on PATH; start the study where it is installed")


def check_manifest(file: Path) -> None:
    """Raise UserError where jobs of Kubernetes cannot be created from a manifest."""
    job = schema.loaded(file)
    if left := [word for word in PLACEHOLDERS if word in words(job)]:
        raise UserError(f"{file}: write your {' and '.join(left).lower()} into it, or into a copy: --profile FOLDER")
    try:
        image = pods.filled(job, EXAMPLE, "sh", "example")["spec"]["template"]["spec"]["containers"][0]["image"]
    except (LookupError, TypeError, ValueError, AttributeError):
        image = None
    if not isinstance(image, str) or not image:
        raise UserError(f"{file}: no manifest of a job of Kubernetes that names the image of its container")


def words(value: object) -> Iterator[object]:
    """Yield the values within nested mappings and lists."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from words(each) if isinstance(each, dict | list) else (each,)
