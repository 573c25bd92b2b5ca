"""A study on Slurm, by Snakemake's own executor; commands of this machine play Slurm's part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.study
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workflow" / "scripts" / "study.py"
SLURM = Path(__file__).with_name("slurm.py")
# as docs/study.md has it, and less patience
WORDS = (
    "--profile slurm --snakemake --default-resources slurm_account=team slurm_partition=short"
    " --slurm-init-seconds-before-status-checks 2"
)
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
    for name in ("sbatch", "srun", "sacct", "sacctmgr", "sinfo", "scancel"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SLURM}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_CLUSTER", str(folder))
    return folder


def run(file: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(file), "--output_dir", str(output), *words]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)


def submitted(cluster: Path) -> dict[str, list[str]]:
    """The arguments of each job that was submitted, by its rule and number."""
    found = {}
    for path in sorted(cluster.glob("*.arguments")):
        words = path.read_text().splitlines()
        found[f"{words[words.index('--comment') + 1].split('_')[1]} {path.stem}"] = words
    return found


def test_a_study_runs_there_and_a_job_that_fails_stops_no_other(cluster, tmp_path):
    file, output = tmp_path / "mine.yaml", tmp_path / "output"
    file.write_text(yaml.safe_dump(CONFIGURATION))
    (cluster / "broken").write_text("pretrain:job=resnet8-digits-seed2")
    done = run(file, output, *WORDS.split(), "--until", "correct")
    assert done.returncode == 1, done.stdout + done.stderr
    kept = [path.parent.name.split("-")[0] for path in output.glob("digits/resnet8/*/run.json")]
    assert sorted(kept) == ["correct", "pretrain"], "of the other seed"

    (cluster / "broken").unlink()
    done = run(file, output, *WORDS.split(), "--until", "correct")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(output.glob("digits/resnet8/*/run.json"))) == 4
    jobs = submitted(cluster)
    assert len(jobs) == 5, "two stages of each of two seeds, and the one that failed: nothing twice"
    for name, words in jobs.items():
        given = " ".join(words)
        pretraining = name.startswith("pretrain")
        assert "-A team -p short" in given
        assert f"-t {7 if pretraining else 240} " in given
        assert f"--mem {1500 if pretraining else 2000} " in given
        assert f"--cpus-per-task={2 if pretraining else 1}" in given
