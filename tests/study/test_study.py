"""Whole studies as local processes: the demo, and one that is killed, as a whole and job by job, and continued."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.study
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workflow" / "scripts" / "study.py"
# two corrections are trained for long enough to be killed
CONFIGURATION = {
    "options": {"batch_size": 16, "limit": 200},
    "matrices": {
        "good": {
            "models": {"resnet8": {"train": True, "epochs": 1}}, "data": ["digits"], "seeds": [1],
            "methods": ["finetune", "random"], "correct": {"epochs": 5}, "degradations": {"blur": {}},
        },
    },
}  # fmt: skip


def command(file: Path, output: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(file), "--output_dir", str(output), "--cores", "2", *words]


def run(file: Path, output: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a study in a folder of its own, where Snakemake keeps its notes."""
    words = command(file, output, *words)
    return subprocess.run(words, cwd=cwd or file.parent, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def started(file: Path, output: Path):
    """A study in a process group of its own, which is killed in the end."""
    process = subprocess.Popen(
        command(file, output), cwd=file.parent, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(output: Path, pattern: str) -> Path:
    """Return the first file of a pattern as soon as it is there."""
    for _ in range(5000):
        if found := sorted(output.glob(pattern)):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} under {output}")


def written(output: Path, name: str) -> Path:
    """A configuration in a folder of its own beside the output."""
    path = output.with_name(f"{output.name}-study") / name
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(CONFIGURATION))
    return path


def asked_for(file: Path, output: Path) -> dict[str, int]:
    """The number of jobs of each rule that would be run."""
    lines = run(file, output, "--dry-run", "--quiet").stdout.splitlines()
    counted = dict(words for line in lines if len(words := line.split()) == 2 and words[1].isdigit())
    return {rule: int(count) for rule, count in counted.items() if rule not in ("all", "total")}


def records(output: Path) -> dict[str, tuple[float, str]]:
    """The time and the content of the record of every finished run, by folder."""
    found = {}
    for path in output.glob("digits/resnet8/*/run.json"):
        found[path.parent.name] = (path.stat().st_mtime, path.read_text())
    return found


def hashes(output: Path) -> dict[str, dict[str, str]]:
    """What every training and measurement has left, by folder; pages and ledgers name other paths."""
    found = {name: json.loads(text)["outputs"] for name, (_time, text) in records(output).items()}
    return {name: each for name, each in found.items() if not name.startswith("compare")}


def process_of(record: Path) -> int:
    """The process of the job whose record begins so, not the shell around it, nor a job of another test's study."""
    for _ in range(2000):
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                place = words[words.index(b"--record") + 1] if b"--record" in words else b""
                if words[0].endswith(b"python") and b"job.py" in words[1] and place.startswith(bytes(record)):
                    return int(entry.name)
        time.sleep(0.05)
    raise AssertionError(f"no process of {record}")


def test_the_demo_leaves_its_tables_and_runs_nothing_again(tmp_path):
    (tmp_path / "demo.yaml").write_text((ROOT / "workflow" / "config" / "demo.yaml").read_text())
    file, output = tmp_path / "demo.yaml", tmp_path / "output"
    first = run(file, output)
    assert first.returncode == 0, first.stdout + first.stderr
    results = tmp_path / "output" / "studies" / "demo" / "results.csv"
    table = pd.read_csv(results)
    assert set(table.network) == {"before repair", "finetune", "taylor, ratio 0.25", "taylor, ratio 0.25, switched"}
    assert table.groupby("network").seed.apply(sorted).tolist() == [[1, 2]] * 4
    assert (
        table[table.network != "before repair"].blurred.mean() > table[table.network == "before repair"].blurred.mean()
    )
    wide = table.pivot(index="seed", columns="network", values="blurred")
    differences = pd.read_csv(results.with_name("results-differences.csv"))
    row = differences[(differences["view"] == "blurred") & (differences.network == "finetune")].iloc[0]
    assert row.seeds == 2
    assert row["interval over"] == "seeds"
    assert row.difference == pytest.approx((wide["finetune"] - wide["before repair"]).mean(), abs=0.011)
    assert row.sd == pytest.approx((wide["finetune"] - wide["before repair"]).std(), abs=0.011)
    assert (results.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")
    levels = pd.read_csv(results.with_name("results-levels.csv"))
    sigmas = [name for name in levels if name.startswith("s=")]
    assert levels["blurred"].to_list() == pytest.approx(table["blurred"].to_list())
    assert levels[sigmas].mean(axis=1).to_list() == pytest.approx(levels["blurred"].to_list(), abs=0.01)
    pairs = levels.merge(levels[levels.network == "before repair"], on="seed", suffixes=("", "_before"))
    pairs = pairs[pairs.network != "before repair"]
    changed = (pairs["repaired"] - pairs["newly wrong"]).to_list()
    assert changed == pytest.approx((pairs["mixed"] - pairs["mixed_before"]).to_list(), abs=0.02)
    assert (results.with_name("results-levels.png")).read_bytes().startswith(b"\x89PNG")
    assert json.loads(results.with_suffix(".json").read_text())["seeds"] == [1, 2]
    before = records(output)
    second = run(file, output)
    assert second.returncode == 0
    assert "Nothing to be done" in second.stdout + second.stderr
    assert records(output) == before
    file.write_text(file.read_text().replace("[finetune, taylor]", "[finetune, taylor, norms]"))
    assert asked_for(file, output) == {"correct": 2, "compare": 2, "collect": 1}, "a method was added, for two seeds"
    file.write_text(file.read_text().replace(", norms]", "]"))
    next(output.glob("studies/demo/correct/*-finetune-*/run.json")).unlink()
    assert asked_for(file, output).items() >= {"correct": 1, "collect": 1}.items(), "a link was deleted"


def test_a_study_that_is_killed_goes_on_and_computes_nothing_twice(tmp_path):
    file, output = written(tmp_path / "killed", "mine.yaml"), tmp_path / "killed"
    with started(file, output) as process:
        wait_for(output, "studies/mine/pretrain/*/run.json")
        wait_for(output, "digits/resnet8/.correct-finetune*.unfinished/checkpoint.pt")
        os.killpg(process.pid, signal.SIGKILL)
    after_first = records(output)
    assert [name.split("-")[0] for name in after_first] == ["pretrain"]
    with started(file, output) as process:  # one job is killed alone: the other one finishes, the study fails
        wait_for(output, "studies/mine/logs/correct/*random*.log")
        os.kill(process_of(output / "studies/mine/correct/resnet8-digits-blur-seed1-random"), signal.SIGKILL)
        assert process.wait() == 1
    after_second = records(output)
    assert {name.split("-")[1] for name in after_second if name.startswith("correct")} == {"finetune"}
    done = run(file, output)
    assert done.returncode == 0, done.stdout + done.stderr
    finished = records(output)
    for name, found in {**after_first, **after_second}.items():
        assert finished[name] == found, "it was computed once"
    log = next((output / "studies/mine/logs/correct").glob("*finetune*")).read_text()
    assert "resumed after epoch" in log, "it did not begin again"

    whole = tmp_path / "whole"
    assert run(written(whole, "mine.yaml"), whole).returncode == 0
    assert hashes(whole) == hashes(output)


def interrupted(file: Path, output: Path, end: Callable[[int], None]) -> None:
    """Begin a study, end it while it trains its first network, and see it end in one line with all its processes."""
    study = subprocess.Popen(
        command(file, output), cwd=file.parent, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    wait_for(output, "studies/mine/logs/pretrain/*.log")
    end(study.pid)
    told = study.communicate(timeout=60)[1]
    assert study.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "interrupted; finished jobs are kept: continue with the same command"
    with pytest.raises(ProcessLookupError):
        os.killpg(study.pid, 0)


def test_ctrl_c_ends_the_study_in_one_line_and_it_can_be_continued(tmp_path):
    output = tmp_path / "a folder"
    file = written(output, "mine.yaml")
    interrupted(file, output, lambda pid: os.killpg(pid, signal.SIGINT))
    done = run(file, output, "--only", "pretrain/*")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name.split("-")[0] for name in records(output)] == ["pretrain"]


def test_sigterm_ends_the_study_and_its_jobs(tmp_path):
    output = tmp_path / "output"
    interrupted(written(output, "mine.yaml"), output, lambda pid: os.kill(pid, signal.SIGTERM))


@pytest.mark.parametrize(("name", "folder"), [("007", "2026_11_27"), ("1e3: é", "true")])
def test_names_that_look_like_numbers_or_yaml_stay_names(tmp_path, name, folder):
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    done = run(Path(tmp_path, f"{name}.yaml").relative_to(tmp_path), Path(folder), "--only", "pretrain/*", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.yaml", folder, ".snakemake"}
    assert len(list((tmp_path / folder / "studies" / name / "pretrain").glob("*/run.json"))) == 1


def test_a_study_of_one_group_of_degradation_has_its_tables_and_picture(tmp_path):
    kinds = {"noise": {"noise_type": "gaussian_noise,shot_noise"}}
    matrix = {
        **CONFIGURATION["matrices"]["good"],
        "methods": ["norms"],
        "correct": {"epochs": 1},
        "degradations": kinds,
    }
    file, output = tmp_path / "few.yaml", tmp_path / "a folder"
    file.write_text(yaml.safe_dump({**CONFIGURATION, "matrices": {"one": matrix}}))
    done = run(file, output)
    assert done.returncode == 0, done.stdout + done.stderr
    results = output / "studies" / "few" / "results.csv"
    table = pd.read_csv(results)
    assert table["degraded"].tolist() == table["noise"].tolist()
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert set(pd.read_csv(results.with_name("results-differences.csv"))["view"]) >= {"clean", "degraded"}


def test_a_chain_alone_leaves_what_its_last_stage_has_measured(tmp_path):
    chain = {
        "stages": ["annotate", "relearn"], "models": {"resnet8": {"train": True, "epochs": 1}}, "data": ["digits"],
        "seeds": [1], "methods": ["random", "mcp"], "options": {"bias": "A"}, "annotate": {"budget": "10"},
        "relearn": {"budget": "10", "epochs": 1, "max_batches": 2},
    }  # fmt: skip
    file, output = tmp_path / "few.yaml", tmp_path / "output"
    file.write_text(yaml.safe_dump({"options": CONFIGURATION["options"], "chains": {"labels": chain}}))
    done = run(file, output)
    assert done.returncode == 0, done.stdout + done.stderr
    results = output / "studies" / "few" / "results-labels.csv"
    assert f"written: {results}" in done.stdout
    table = pd.read_csv(results)
    assert table["method"].tolist() == ["random", "mcp"]
    assert table["budget"].tolist() == [10, 10]
    assert set(table["model"]) == {"resnet8"}
    assert json.loads(results.with_suffix(".json").read_text())["seeds"] == [1]


def test_mistakes_are_one_line_before_anything_runs(tmp_path):
    (tmp_path / "broken.yaml").write_text("matrices: {one: [")
    absent = {**CONFIGURATION["matrices"]["good"], "models": {"resnet8": {"weights": "absent.safetensors"}}}
    (tmp_path / "absent.yaml").write_text(yaml.safe_dump({"matrices": {"one": absent}}))
    good = written(tmp_path / "output", "good.yaml")
    mistakes = {
        "broken.yaml is no YAML": (tmp_path / "broken.yaml", []),
        "absent.safetensors: No such file": (tmp_path / "absent.yaml", []),
        "--cores=0: give a number above 0": (good, ["--cores", "0"]),
    }
    for message, (file, words) in mistakes.items():
        found = run(file, tmp_path / "output", *words)
        assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
        assert message in found.stderr
    assert not (tmp_path / "output").exists()


def test_a_job_that_fails_does_not_stop_the_others_and_a_second_study_is_refused(tmp_path):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no archive")
    good = {**CONFIGURATION["matrices"]["good"], "methods": ["norms"], "correct": {"epochs": 1}}
    bad = {**good, "data": [f"npz:{broken}"]}
    file, output = tmp_path / "mixed.yaml", tmp_path / "output"
    file.write_text(yaml.safe_dump({**CONFIGURATION, "matrices": {"bad": bad, "good": good}}))
    with started(file, output) as process:
        wait_for(output, "studies/.mixed.lock")
        second = run(file, output)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert "this study runs already" in second.stderr
        assert process.wait() == 1
    assert len(list(output.glob("studies/mixed/compare/*digits*/run.json"))) == 1
    (log,) = output.glob("studies/mixed/logs/pretrain/*npz*.log")
    assert "error: " in log.read_text()


def test_patterns_choose_jobs_and_what_they_read(tmp_path):
    file = written(tmp_path / "output", "some.yaml")
    found = run(file, tmp_path / "output", "--only", "correct/*-random-*", "--dry-run")
    assert found.returncode == 0
    lines = [line.split() for line in (found.stdout + found.stderr).splitlines()]
    counted = {words[0]: words[1] for words in lines if len(words) == 2}
    assert {name: counted.get(name) for name in ("pretrain", "correct", "compare")} == {
        "pretrain": "1", "correct": "1", "compare": None
    }  # fmt: skip
    nothing = run(file, tmp_path / "output", "--only", "no-such-*")
    assert nothing.returncode == 2
    assert "--only no-such-*: no job of this study has such a name" in nothing.stderr
