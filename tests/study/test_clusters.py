"""Studies on Slurm and Kubernetes, by Snakemake's own executors; commands of this machine play the clusters' part."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study
import yaml
from pods import filled, state

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
    manifest.write_text(manifest.read_text().replace("image: IMAGE", "image: ours:1"))
    return folder / "mine.yaml", folder / "output"


def run_twice(cluster: Path, folder: Path, words: str) -> None:
    """Run two stages of two seeds, of which one fails in the first of two runs and stops no other."""
    file, output = written(folder)
    (cluster / "broken").write_text("pretrain:job=resnet8-digits-seed2")
    for status, stages in ((1, ["correct", "pretrain"]), (0, ["correct", "correct", "pretrain", "pretrain"])):
        until = [*command(file, output, *words.split()), "--until", "correct"]
        done = subprocess.run(until, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        kept = [path.parent.name.split("-")[0] for path in output.glob("digits/resnet8/*/run.json")]
        assert sorted(kept) == stages
        (cluster / "broken").unlink(missing_ok=True)


@pytest.mark.study
def test_a_study_runs_on_slurm(cluster, tmp_path):
    run_twice(cluster, tmp_path, SLURM)
    jobs = [path.read_text().splitlines() for path in cluster.glob("*.arguments")]
    assert len(jobs) == 5, "two stages of each of two seeds, and the one that failed: nothing twice"
    for words in jobs:
        given, pretraining = " ".join(words), words[words.index("--comment") + 1].startswith("rule_pretrain")
        assert "-A team -p short" in given
        assert f"-t {7 if pretraining else 240} " in given
        assert f"--mem {1500 if pretraining else 2000} " in given
        assert f"--cpus-per-task={2 if pretraining else 1}" in given


@pytest.mark.study
def test_a_study_runs_on_kubernetes(cluster, tmp_path):
    run_twice(cluster, tmp_path, KUBERNETES)
    jobs = [json.loads(path.read_text()) for path in cluster.glob("*.json")]
    assert len(jobs) == 5, "two stages of each of two seeds, and the one that failed: nothing twice"
    assert sorted(job["spec"]["activeDeadlineSeconds"] for job in jobs) == [420, 420, 420, 14400, 14400]


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
    script = tmp_path / "a script.sh"
    script.write_text(f"#!/bin/sh\n# properties = {json.dumps(needs)}\ncd here\n")
    given = yaml.safe_load((PROFILE / "job.yaml").read_text())
    job = filled(yaml.safe_load(yaml.safe_dump(given)), script, "mine")
    assert job["metadata"] == {"labels": {"app": "deeppatch"}, "name": "mine"}
    assert job["spec"]["activeDeadlineSeconds"] == 480 * 60
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["/bin/sh", str(script)]
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "16000M"}, "limits": {"amd.com/gpu": "1"},
    }  # fmt: skip
    before = given["spec"]["template"]["spec"]
    assert {name: container[name] for name in before["containers"][0]} == before["containers"][0]
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


@pytest.mark.parametrize(
    ("manifest", "path", "message"),
    [
        ("image: IMAGE", None, "write your image and claim into it, or into a copy: --profile FOLDER"),
        ("image: ours:1", "", "kubectl, which creates the jobs, is not on PATH; install it"),
        ("picture: ours:1", None, "no manifest of a job of Kubernetes that names the image of its container"),
        ("image: [", None, "no manifest of a job of Kubernetes that names the image of its container"),
    ],
)
def test_what_kubernetes_cannot_create_is_one_line(tmp_path, monkeypatch, capsys, manifest, path, message):
    file, output = written(tmp_path)
    given = tmp_path / "mine" / "job.yaml"
    given.write_text(given.read_text().replace("image: ours:1", manifest))
    monkeypatch.chdir(tmp_path)
    if path is not None:
        monkeypatch.setenv("PATH", path)
    assert study.main([str(file), "--output_dir", str(output), "--profile", "mine"]) == 2
    assert capsys.readouterr().err.strip().endswith(message)


def test_a_profile_that_is_not_there_is_one_line(tmp_path, capsys):
    file, output = written(tmp_path)
    assert study.main([str(file), "--output_dir", str(output), "--profile", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: --profile nowhere: choose from kubernetes, slurm, or give a folder with a config.yaml\n"
    )
