"""Commands of Slurm and Kubernetes, played by processes of this machine: stand_ins.py COMMAND ARGUMENTS.

The folder STAND_IN_CLUSTER has the arguments or the manifest of each job, its state, and its process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN_CLUSTER"])


def begin(job: str, command: str, log: Path) -> None:
    """Start a job in a process group of its own, and do not wait for it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{job}.state").write_text("RUNNING")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__, "node", job, command], start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=stream, env={**os.environ, "SLURM_JOB_ID": job},
        )  # fmt: skip
    (FOLDER / f"{job}.group").write_text(str(process.pid))


def node(words: list[str]) -> None:
    """Run a job and note how it ended; those that name what the file `broken` says fail at once."""
    job, command = words
    broken = FOLDER / "broken"
    script = Path(command.split()[-1])  # the command itself, or a script that has it
    text = script.read_text() if script.suffix == ".sh" else command
    fails = broken.exists() and broken.read_text() in text
    status = 1 if fails else subprocess.run(command, shell=True, check=False).returncode  # noqa: S602
    (FOLDER / f"{job}.state").write_text("FAILED" if status else "COMPLETED")


def end(jobs: list[str]) -> None:
    """End jobs with their processes."""
    for job in jobs:
        (FOLDER / f"{job}.state").write_text("CANCELLED")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((FOLDER / f"{job}.group").read_text()), signal.SIGKILL)


def sbatch(words: list[str]) -> None:
    """Start a job, as --wrap says, and print its number."""
    number = str(1000 + len(list(FOLDER.glob("*.arguments"))))
    (FOLDER / f"{number}.arguments").write_text("\n".join(words))
    command = next(word for word in words if word.startswith("--wrap=")).removeprefix("--wrap=")
    begin(number, command, Path(words[words.index("--output") + 1].replace("%j", number)))
    print(number)


def srun(words: list[str]) -> None:
    """Become what is to run within a job."""
    rest = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    os.execvp(rest[0], rest)  # noqa: S606


def sacct(words: list[str]) -> None:
    """Print the number and the state of each job of a name."""
    for path in FOLDER.glob("*.arguments"):
        if words[words.index("--name") + 1] in path.read_text().splitlines():
            print(f"{path.stem}|{path.with_suffix('.state').read_text()}")


def sacctmgr(_words: list[str]) -> None:
    """Print the accounts of a user."""
    print("team")


def sinfo(_words: list[str]) -> None:
    """Print the partitions."""
    print("PARTITION\nshort*")


def scancel(words: list[str]) -> None:
    """End jobs."""
    end([word for word in words if word.isdigit()])


def kubectl(words: list[str]) -> None:
    """Create, describe and delete jobs."""
    if words[0] == "create":
        manifest = json.load(sys.stdin)
        name, pod = manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
        (FOLDER / f"{name}.json").write_text(json.dumps(manifest))
        container = pod["containers"][0]
        os.chdir(container["workingDir"])
        begin(name, " ".join(container["command"]), FOLDER / f"{name}.log")
        print(f"job.batch/{name} created")
    elif words[0] == "get":
        if (FOLDER / "unreachable").exists():  # once
            (FOLDER / "unreachable").unlink()
            sys.exit("Unable to connect to the server")
        state = (FOLDER / f"{words[2]}.state").read_text()
        kinds = {"COMPLETED": "Complete", "FAILED": "Failed"}
        conditions = [{"type": kinds[state], "status": "True"}] if state in kinds else None
        print(json.dumps({"status": {"conditions": conditions}}))
    else:
        end([word for word in words[2:] if not word.startswith("-")])


COMMANDS = (node, sbatch, srun, sacct, sacctmgr, sinfo, scancel, kubectl)

if __name__ == "__main__":
    {each.__name__: each for each in COMMANDS}[sys.argv[1]](sys.argv[2:])
