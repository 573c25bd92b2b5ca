#!/usr/bin/env python3
"""Jobs of Snakemake as jobs of Kubernetes, by kubectl.

pods.py submit MANIFEST SCRIPT   create a job that runs a script of Snakemake, and print its name
pods.py status JOB               print success, failed or running
pods.py JOB ...                  delete jobs, which ends their pods

MANIFEST is that of a job, such as workflow/profiles/kubernetes/job.yaml. Its name, command, folder, threads, memory,
GPUs and time limit are filled in; image, volumes and whatever else a cluster asks for stay as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROPERTIES = "# properties = "  # of the line by which Snakemake says in a script what its job needs
DEFAULT_GPUS = "nvidia"
MINUTE_S = 60


def submit(manifest: Path, script: Path) -> str:
    """Create a job and return its name."""
    job = filled(yaml.safe_load(manifest.read_text()), script.resolve(), f"deeppatch-{uuid.uuid4().hex[:16]}")
    kubectl("create", "-f", "-", given=json.dumps(job))
    return str(job["metadata"]["name"])


def filled(job: dict[str, Any], script: Path, name: str) -> dict[str, Any]:
    """Return the manifest of the job that runs a script in this folder, which its pod must see at the same path."""
    found = next(line for line in script.read_text().splitlines() if line.startswith(PROPERTIES))
    properties = json.loads(found.removeprefix(PROPERTIES))
    resources = properties["resources"]
    job.setdefault("metadata", {})["name"] = name
    job["spec"]["activeDeadlineSeconds"] = MINUTE_S * resources["runtime"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    container |= {"command": ["/bin/sh", str(script)], "workingDir": str(Path.cwd())}
    needs = container.setdefault("resources", {})
    needs["requests"] = {"cpu": str(properties["threads"]), "memory": f"{resources['mem_mb']}M"}
    if gpus := resources.get("gpu"):
        needs["limits"] = {f"{resources.get('gpu_manufacturer', DEFAULT_GPUS)}.com/gpu": str(gpus)}
    return job


def status(name: str) -> str:
    """Return what Snakemake calls the state of a job."""
    return state(json.loads(kubectl("get", "job", name, "-o", "json")))


def state(job: Mapping[str, Any]) -> str:
    """Return `success`, `failed` or `running` for a job as Kubernetes describes it."""
    conditions = job.get("status", {}).get("conditions") or []
    holding = {each["type"] for each in conditions if each["status"] == "True"}
    return "success" if "Complete" in holding else "failed" if "Failed" in holding else "running"


def kubectl(*words: str, given: str | None = None) -> str:
    """Return what kubectl prints; its own messages go to ours."""
    return subprocess.run(["kubectl", *words], input=given, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603, S607


def main(words: list[str]) -> None:
    """Do what the arguments say."""
    if words[0] == "submit":
        print(submit(Path(words[1]), Path(words[2])))
    elif words[0] == "status":
        print(status(words[1]))
    else:
        kubectl("delete", "job", "--wait=false", *words)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
