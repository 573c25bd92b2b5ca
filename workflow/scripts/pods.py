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

PROPERTIES = "# properties = "  # of the line by which Snakemake says in a script what its job needs
DEFAULT_GPUS = "nvidia"
MINUTE_S = 60


def submit(manifest: Path, script: Path) -> str:
    """Create a job and return its name; Ctrl-C deletes it, of which Snakemake knows nothing yet."""
    import yaml  # which the Python that deletes jobs need not have

    found = next(line for line in script.read_text().splitlines() if line.startswith(PROPERTIES))
    name = f"deeppatch-{uuid.uuid4().hex[:16]}"
    properties = json.loads(found.removeprefix(PROPERTIES))
    job = filled(yaml.safe_load(manifest.read_text()), properties, str(script.resolve()), name)
    try:
        kubectl("create", "-f", "-", given=json.dumps(job))
    except KeyboardInterrupt:
        delete([name])
        raise
    return name


def filled(job: dict[str, Any], properties: Mapping[str, Any], script: str, name: str) -> dict[str, Any]:
    """Return the manifest of the job that runs a script in this folder, which its pod must see at the same path.

    Args:
        job: The manifest, which is changed.
        properties: What Snakemake says of the job: `threads`, and `resources` with `mem_mb`, `runtime` in minutes,
            and where it needs them `gpu` and `gpu_manufacturer`.
        script: The script's path.
        name: The job's name.
    """
    resources = properties["resources"]
    job["metadata"] = {**(job.get("metadata") or {}), "name": name}
    pod = job["spec"]["template"]["spec"]
    pod["activeDeadlineSeconds"] = MINUTE_S * resources["runtime"]  # of the pod: what waits for a node takes no time
    container = pod["containers"][0]
    container |= {"command": ["/bin/sh", script], "workingDir": str(Path.cwd())}
    needs = container["resources"] = dict(container.get("resources") or {})
    own = {"cpu": str(properties["threads"]), "memory": f"{resources['mem_mb']}M"}
    needs["requests"] = {**(needs.get("requests") or {}), **own}
    if gpus := resources.get("gpu"):
        kind = f"{resources.get('gpu_manufacturer', DEFAULT_GPUS)}.com/gpu"
        needs["limits"] = {**(needs.get("limits") or {}), kind: str(gpus)}
    return job


def status(name: str) -> str:
    """Return what Snakemake calls the state of a job; running where kubectl cannot say it, which is asked again."""
    try:
        told = kubectl("get", "job", name, "--ignore-not-found", "--request-timeout=30s", "-o", "json")
    except subprocess.CalledProcessError as error:
        print(f"{error}; {name} counts as running until kubectl answers", file=sys.stderr)
        return "running"
    except KeyboardInterrupt:  # Snakemake ends of itself
        return "running"
    return state(json.loads(told)) if told.strip() else "failed"  # somebody has deleted it


def state(job: Mapping[str, Any]) -> str:
    """Return `success`, `failed` or `running` for a job as Kubernetes describes it."""
    conditions = job.get("status", {}).get("conditions") or []
    holding = {each["type"] for each in conditions if each["status"] == "True"}
    return "success" if "Complete" in holding else "failed" if "Failed" in holding else "running"


def delete(names: list[str]) -> None:
    """Delete jobs; Snakemake waits two seconds for this and then ends, which kubectl outlives."""
    words = ["kubectl", "delete", "job", "--ignore-not-found", "--wait=false", *names]
    subprocess.run(words, check=True, start_new_session=True, stdout=subprocess.DEVNULL)  # noqa: S603


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
        delete(words)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
