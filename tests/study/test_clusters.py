"""Studies on Slurm and Kubernetes, by Snakemake's own executors; commands of this machine play the clusters' part."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import clusters
import pods
import pytest
import study
import yaml
from pods import filled, state

from deeppatch.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workflow" / "scripts" / "study.py"
PROFILE = ROOT / "workflow" / "profiles" / "kubernetes"
STAND_INS = Path(__file__).with_name("stand_ins.py")
# as docs/study.md has it, and less patience
SLURM = (
    "--profile slurm --snakemake --default-resources slurm_account=team slurm_partition=short"
    " --slurm-init-seconds-before-status-checks 2"
)
KUBERNETES = "--profile mine --snakemake --seconds-between-status-checks 1"
CONFIGURATION = {
    "options": {"batch_size": 16, "limit": 200}, "rules": {"pretrain": {"mem_mb": 1500, "runtime": 7, "threads": 2}},
    "matrices": {
        "good": {
            "models": {"resnet8": {"train": True, "epochs": 1}}, "data": ["digits"], "seeds": [1, 2],
            "methods": ["random"], "correct": {"epochs": 1}, "degradations": {"blur": {}},
        },
    },
}  # fmt: skip


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """The folder that has the jobs of a cluster, whose commands can be called."""
    folder, commands = tmp_path / "cluster", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "sacctmgr", "sinfo", "scancel", "kubectl"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_INS}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])  # `python`, in pods
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("STAND_IN_CLUSTER", str(folder))
    return folder


def command(file: Path, output: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(file), "--output_dir", str(output), *words]


def written(folder: Path) -> tuple[Path, Path]:
    """A configuration, and where its output shall lie; a profile of Kubernetes beside them."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    shutil.copytree(PROFILE, folder / "mine")
    manifest = folder / "mine" / "job.yaml"
    manifest.write_text(manifest.read_text().replace("image: IMAGE", "image: ours:1").replace("CLAIM", "ours"))
    return folder / "mine.yaml", folder / "output"


def run_twice(cluster: Path, folder: Path, words: str, last: str) -> None:
    """Run the stages until the last for two seeds, of which one fails in the first of two runs and stops no other."""
    file, output = written(folder)
    (cluster / "broken").write_text("pretrain:job=resnet8-digits-seed2")
    for status, seeds in ((1, 1), (0, 2)):
        until = [*command(file, output, *words.split()), "--until", last]
        done = subprocess.run(until, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        kept = [path.parent.name.split("-")[0] for path in output.glob("digits/resnet8/*/run.json")]
        assert sorted(kept) == sorted([*{"pretrain", last}] * seeds)
        (cluster / "broken").unlink(missing_ok=True)


@pytest.mark.study
def test_a_study_runs_on_slurm(cluster, tmp_path):
    run_twice(cluster, tmp_path, SLURM, "pretrain")
    jobs = [path.read_text() for path in cluster.glob("*.arguments")]
    assert len(jobs) == 3, "a stage of each of two seeds, and the one that failed: nothing twice"
    for job in jobs:
        given = " ".join(job.splitlines())
        assert all(each in given for each in ("-A team -p short", "-t 7 ", "--mem 1500 ", "--cpus-per-task=2"))


@pytest.mark.study
def test_a_study_runs_on_kubernetes(cluster, tmp_path):
    (cluster / "unreachable").touch()
    run_twice(cluster, tmp_path, KUBERNETES, "correct")
    assert not (cluster / "unreachable").exists()
    jobs = [json.loads(path.read_text()) for path in cluster.glob("*.json")]
    assert len(jobs) == 5, "two stages of each of two seeds, and the one that failed: nothing twice"
    limits = [job["spec"]["template"]["spec"]["activeDeadlineSeconds"] for job in jobs]
    assert sorted(limits) == [420, 420, 420, 14400, 14400]


@pytest.mark.study
def test_ctrl_c_deletes_the_jobs_of_kubernetes(cluster, tmp_path):
    file, output = written(tmp_path)
    running = subprocess.Popen(
        command(file, output, *KUBERNETES.split()), cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    for _ in range(1200):
        if len(list(output.glob("studies/mine/logs/pretrain/*.log"))) == 2:  # Snakemake knows both, for they run
            break
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    told = running.communicate()[1]
    assert running.returncode == 130
    assert told.splitlines()[-1] == "interrupted; finished jobs are kept: continue with the same command"
    assert [path.read_text() for path in cluster.glob("*.state")] == ["CANCELLED"] * 2


def test_a_job_of_kubernetes_keeps_what_its_manifest_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needs = {"threads": 4, "resources": {"mem_mb": 16000, "runtime": 480, "gpu": 1, "gpu_manufacturer": "amd"}}
    given = yaml.safe_load((PROFILE / "job.yaml").read_text())
    own = {"requests": {"cpu": "1", "ephemeral-storage": "9G"}, "limits": {"memory": "20G"}}
    given["spec"]["template"]["spec"]["containers"][0]["resources"] = own
    job = filled(copy.deepcopy(given), needs, "/a script.sh", "mine")
    assert job["metadata"] == {"labels": {"app": "deeppatch"}, "name": "mine"}
    assert "activeDeadlineSeconds" not in job["spec"], "which would count the time in which a pod waits for a node"
    assert job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 480 * 60
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["/bin/sh", "/a script.sh"]
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "16000M", "ephemeral-storage": "9G"},
        "limits": {"memory": "20G", "amd.com/gpu": "1"},
    }
    before = given["spec"]["template"]["spec"]
    kept = before["containers"][0].keys() - {"resources"}
    assert {name: container[name] for name in kept} == {name: before["containers"][0][name] for name in kept}
    assert job["spec"]["template"]["spec"]["volumes"] == before["volumes"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, "running"),
        ([{"type": "Suspended", "status": "False"}], "running"),
        ([{"type": "Failed", "status": "False"}], "running"),
        ([{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}], "success"),
        ([{"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True"}], "failed"),
    ],
)
def test_the_state_of_a_job_is_that_of_its_conditions(conditions, expected):
    assert state({"status": {"conditions": conditions}}) == expected
    assert state({}) == "running", "it was just created"


@pytest.mark.parametrize(("answer", "expected"), [("exit 1", "running"), ("true", "failed"), ("echo {}", "running")])
def test_a_job_is_lost_where_kubernetes_says_so_and_not_where_it_says_nothing(
    tmp_path, monkeypatch, capfd, answer, expected
):
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert pods.status("deeppatch-1") == expected
    assert ("deeppatch-1 counts as running until kubectl answers" in capfd.readouterr().err) == (answer == "exit 1")


def test_jobs_are_deleted_by_a_python_without_packages(cluster):
    begin = [sys.executable, "-c", "import stand_ins; stand_ins.begin('mine', 'sleep 60', stand_ins.FOLDER / 'log')"]
    subprocess.run(begin, check=True, env={**os.environ, "PYTHONPATH": str(STAND_INS.parent)})
    subprocess.run([sys.executable, "-S", "-I", str(SCRIPT.with_name("pods.py")), "mine"], check=True)
    assert (cluster / "mine.state").read_text() == "CANCELLED"


IMAGE = "no manifest of a job of Kubernetes that names the image of its container"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image: ours:1", "image: IMAGE", "write your image into it, or into a copy: --profile FOLDER"),
        ("claimName: ours", "claimName: CLAIM", "write your claim into it, or into a copy: --profile FOLDER"),
        (
            "image: ours:1",
            "image: ours:1",
            "kubectl, which submits the jobs, is not on PATH; start the study where it is",
        ),
        ("image: ours:1", "image:", IMAGE),
        ("image: ours:1", "image: [a]", IMAGE),
        ("image: ours:1", "picture: ours:1", IMAGE),
        ("  labels: {app: deeppatch}", "  - a", IMAGE),
        ("containers:", "vessels:", IMAGE),
        ("spec:", "- spec:", "is no YAML"),
        ("image: ours:1", "image: [", "is no YAML"),
    ],
)
def test_what_kubernetes_cannot_create_is_one_line(tmp_path, monkeypatch, capsys, old, new, message):
    file, output = written(tmp_path)
    given = tmp_path / "mine" / "job.yaml"
    given.write_text(given.read_text().replace(old, new, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert study.main([str(file), "--output_dir", str(output), "--profile", "mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not output.exists()


def test_a_manifest_without_metadata_is_one(tmp_path):
    file = written(tmp_path)[0].parent / "mine" / "job.yaml"
    file.write_text(file.read_text().replace("  labels: {app: deeppatch}\n", ""))
    clusters.check_manifest(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--profile", "nowhere"],
            "--profile nowhere: choose from kubernetes, slurm, or give a folder with a config.yaml",
        ),
        (["--profile", ""], "--profile '': choose from kubernetes, slurm, or give a folder with a config.yaml"),
        (
            ["--profile", "slurm"],
            "sbatch, which submits the jobs, is not on PATH; start the study where it is installed",
        ),
        (
            ["--profile", "slurm", "--cores", "2"],
            "--cores are of this machine, but --profile runs jobs elsewhere; leave",
        ),
    ],
)
def test_a_profile_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    file, output = written(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert study.main([str(file), "--output_dir", str(output), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no executor, as workflow/profiles/slurm/config.yaml does"),
        ("executor: [a]", "names no executor, as workflow/profiles/slurm/config.yaml does"),
        ("executor: slrum", "the profile needs the package snakemake-executor-plugin-slrum; install it with: pip"),
    ],
)
def test_a_profile_without_an_executor_is_one_line(tmp_path, capsys, text, message):
    file, output = written(tmp_path)
    (tmp_path / "mine" / "config.yaml").write_text(text)
    assert study.main([str(file), "--output_dir", str(output), "--profile", str(tmp_path / "mine")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_profile_s_executor_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="pip install snakemake-executor-plugin-slurm"):
        clusters.check(clusters.profile_of("slurm"))
