"""A bench on which the commands run: tiny images, one chain of stages for the session, and copies of what it left."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.cli import main
from deeppatch.cli.declared import Folder, declaration
from deeppatch.data import sources
from deeppatch.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "python src/{script}.py"
ENVIRONMENT = {"DEEPPATCH_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
REPLACE = "-f perfloss -c patch --crt_type replace"
CRTUNIT = "-f featswap -c patch --crt_type crtunit --susp_ratio 0.5 --susp_side rear"
# every stage of the session's chain, in order, by the folder that it leaves
CHAIN = {
    "pretrain": "eval -e 6 --lr 0.1",
    "assess-perfloss": "select -f perfloss -b 36",
    "assess-featswap": "select -f featswap",
    "correct-patch-replace-perfloss": f"correct {REPLACE} --crt_epoch 4 --lr 0.2",
    "correct-patch-crtunit-featswap-ratio0.5-rear": f"correct {CRTUNIT} --crt_epoch 3 --lr 0.1",
    "switch-patch-crtunit-featswap-ratio0.5-rear-flips": f"switch {CRTUNIT} --router flips",
    "correct-finetune": "correct -c finetune --crt_epoch 4 --lr 0.1",
    "switch-patch-replace-perfloss-probe": f"switch {REPLACE}",
    "switch-patch-replace-perfloss-flips": f"switch {REPLACE} --router flips",
    "switch-patch-replace-perfloss-probe-batch": f"switch {REPLACE} --switch batch",
    "eval-patch-replace-perfloss": f"eval --state corrected {REPLACE}",
    "eval-finetune": "eval --state corrected -c finetune",
}


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


def run(script: str, arguments: list[str], prefix: str = PREFIX, **environment: str) -> Result:
    """Run a command in this process, as its script does; what it sets globally is set back."""
    out, err = io.StringIO(), io.StringIO()
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in {**ENVIRONMENT, **environment}.items():
            patch.setenv(name, value)
        try:
            status = main.guarded(script, arguments, prefix=prefix)
        except SystemExit as end:  # argparse, after --help
            status = int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)
    return Result(status, out.getvalue(), err.getvalue())


def start(script: str, arguments: list[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start a command as its script under src/, in a process of its own that heeds Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    try:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "src" / f"{script}.py"), *arguments], cwd=cwd,
            env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def write_waves(folder: Path, *, classes: int = 3, train: int = 10, test: int = 8, seed: int = 0) -> Path:
    """Write an image folder whose classes differ in the direction of fine stripes, which blur wipes out."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    phases = [columns, rows, rows + columns, columns - rows]
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                noise = 0.12 * draw.standard_normal((32, 32)) + 0.1 * draw.standard_normal()
                grey = 0.5 + 0.25 * np.sin(2.2 * phases[label]) + noise
                image = np.clip(grey[..., None] + 0.05 * draw.standard_normal((1, 1, 3)), 0, 1)
                Image.fromarray((255 * image).astype(np.uint8)).save(place / f"{number:03}.png")
    return folder


class Runs:
    """The folders that stages have left for one network, found by what they are called without hashes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, name: str) -> Path:
        """Return the path of `STAGE` or `STAGE/FILE`; the hash that other settings than the default add is left out."""
        stage, slash, file = name.partition("/")
        found = [path for path in self.root.glob(f"{stage}*") if without_hash(path.name) == stage]
        exact = [path for path in found if path.name == stage]
        assert len(exact or found) <= 1, f"{name} is one of {found}"
        folder = (exact or found or [self.root / stage])[0]
        return folder / file if slash else folder

    def unfinished(self, stage: str) -> Path:
        """Return the folder in which a run of a stage works, and which an interrupted one leaves."""
        found = [path for path in self.root.glob(f".{stage}*.unfinished") if without_hash(path.stem[1:]) == stage]
        assert len(found) <= 1, found
        return found[0] if found else self.root / f".{stage}.unfinished"

    def names(self) -> set[str]:
        """Return what stages' folders are called, without hashes."""
        return {without_hash(path.name) for path in self.root.iterdir()}

    def left_over(self, stage: str) -> set[str]:
        """Return the files that an interrupted run of a stage has left."""
        place = self.unfinished(stage)
        return {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}

    def overwrite_base(self, stage: str = "pretrain", bias: str = "network.fc.bias") -> None:
        """Let pretrain have left other weights, as if the same command had been run on another machine."""
        path = self.at(f"{stage}/weights.safetensors")
        state, meta = tensors_from_bytes(path.read_bytes(), path)
        state[bias] += 0.5
        path.write_bytes(tensors_to_bytes(state, meta))
        record = json.loads((path.parent / "run.json").read_bytes())
        record["outputs"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (path.parent / "run.json").write_text(json.dumps(record))


class Bench(Runs):
    """One output folder on the tiny images, and the commands that work in it."""

    def __init__(self, data: Path, output: Path) -> None:
        self.data = data
        self.output = output
        self.slug = sources.slug(f"folder:{data}")
        super().__init__(output / self.slug / "resnet8")

    def arguments(self, line: str) -> tuple[str, list[str]]:
        """Return the script of `SCRIPT OPTIONS` and its arguments, with model, data, batch and folder added."""
        script, *rest = shlex.split(line)
        fixed = ["-m", "resnet8", "-d", f"folder:{self.data}", "-b", "12", "--device", "cpu"]
        return script, [*fixed, "--output_dir", str(self.output), *rest]

    def run(self, line: str) -> Result:
        """Run a stage in this process; later options override the bench's own."""
        return run(*self.arguments(line))

    def ran(self, line: str) -> Result:
        """Run a stage that must succeed."""
        result = self.run(line)
        assert (result.status, result.err) == (0, ""), result.err
        return result

    def refused(self, line: str) -> str:
        """Run a stage that must end with status 2 and one line on stderr; return that line."""
        return one_line(self.run(line))

    def start(self, line: str) -> subprocess.Popen[str]:
        """Start a stage in a process of its own."""
        return start(*self.arguments(line))

    def type_in(self, command: str) -> Result:
        """Run a command that a message told to run, split as a shell splits it."""
        python, path, *rest = shlex.split(command)
        assert python == "python"
        assert (ROOT / path).is_file()
        return run(Path(path).stem, rest)

    def copy(self, output: Path, *names: str) -> Bench:
        """Return a bench with copies of the named stages' folders, or of all of them."""
        other = Bench(self.data, output)
        for folder in sorted(self.root.iterdir()):
            if not names or without_hash(folder.name) in names:
                shutil.copytree(folder, other.root / folder.name)
        return other

    def rank_by_hand(self, path: Path, weights: Path | None = None) -> Path:
        """Write a ranking of the first layer alone, last channel first, for what pretrain left or other weights."""
        state = safetensors.torch.load_file(weights or next(self.root.glob("pretrain*/weights.safetensors")))
        layers = {"conv1": {"order": list(range(15, -1, -1)), "scores": [0.0] * 16}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"base": state_digest(state), "method": "by hand", "layers": layers}))
        return path

    def files(self, stage: str | None = None) -> set[str]:
        """Return all files that there are, hidden ones too, relative to a stage's folder or to the model's."""
        place = self.at(stage) if stage else self.root
        return {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}

    def hashes(self, stage: str | None = None) -> dict[str, str]:
        """Return the SHA-256 of each of those files but the records, which carry the wall time."""
        place = self.at(stage) if stage else self.root
        names = sorted(name for name in self.files(stage) if Path(name).name != "run.json")
        return {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names}

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads(self.at(name).read_bytes())


def without_hash(name: str) -> str:
    """Return a folder's name without the hash that says that some setting is not the default."""
    return re.sub(r"(?<!given)-[0-9a-f]{6}$", "", name)


def one_line(result: Result) -> str:
    """Check that a command refused with status 2 and one line on stderr, and return the line."""
    assert result.status == 2, result
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.out
    return result.err.removeprefix("error: ").rstrip("\n")


def times_in(value: Any) -> list[str]:
    """Return the names within a JSON value that say a time."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    words = re.compile("second|_ms$|minute|(^|_)times?(_|$)")
    own = [name for name in value if words.search(name)] if isinstance(value, dict) else []
    return own + [name for part in parts for name in times_in(part)]


@pytest.fixture(scope="session")
def declared() -> dict[str, tuple[Folder, ...]]:
    """The folders that each stage declares, by the name of the stage in the record."""
    modules = [importlib.import_module(f"deeppatch.cli.{stage}.command") for stage in main.COMMANDS.values()]
    found = {module.STAGE: module.ARTIFACTS for module in modules if hasattr(module, "ARTIFACTS")}
    return {**found, "eval": found["pretrain"]}  # pretrain --state corrected


@pytest.fixture(scope="session", autouse=True)
def every_run_leaves_what_its_stage_declares(declared: dict[str, tuple[Folder, ...]]) -> Iterator[None]:
    """Compare every run of a stage in these tests with the folders and files that the stage declares."""
    finish = Stage.finish

    def compared(stage: Stage) -> None:
        if stage.writes and (folders := declared.get(stage.facts.get("stage", ""))):
            folder = declaration(folders, stage.folder.name)
            assert folder is not None, f"no folder like {stage.folder.name} is declared"
            assert folder.problems(stage.outputs) == [], stage.folder.name
            metrics = stage.unfinished / "metrics.json"
            timed = times_in(json.loads(metrics.read_bytes()) if "metrics.json" in stage.outputs else {})
            assert not timed, (
                f"{stage.folder.name}: metrics.json holds {timed}, but bytes repeat; times are in run.json"
            )
        finish(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "finish", compared)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread, as the stages of the bench do, while a test of this folder runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def launch() -> Callable[..., Result]:
    """`launch(script, arguments, prefix=..., VARIABLE=...)` runs any command in this process."""
    return run


@pytest.fixture(scope="session")
def launch_process() -> Callable[..., subprocess.Popen[str]]:
    """`launch_process(script, arguments, cwd=...)` starts a script under src/."""
    return start


@pytest.fixture(scope="session")
def refusal() -> Callable[[Result], str]:
    """`refusal(result)` checks status 2 and one line on stderr, and returns the line."""
    return one_line


@pytest.fixture(scope="session")
def waves() -> Callable[..., Path]:
    """`waves(folder, classes=3, train=10, test=8, seed=0)` writes an image folder."""
    return write_waves


@pytest.fixture(scope="session")
def new_bench() -> type[Bench]:
    """`new_bench(data, output)` is a bench on an image folder of the test's own."""
    return Bench


@pytest.fixture(scope="session")
def runs_in() -> type[Runs]:
    """`runs_in(folder)` finds runs of a network there."""
    return Runs


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every stage, run once; tests read what it left and change nothing."""
    place = tmp_path_factory.mktemp("chain")
    bench = Bench(write_waves(place / "waves"), place / "output")
    for line in CHAIN.values():
        bench.ran(line)
    return bench


@pytest.fixture(scope="session")
def chain_lines() -> dict[str, str]:
    """The command of every stage of the chain, by the folder that it leaves."""
    return dict(CHAIN)


@pytest.fixture
def bench(chain: Bench, tmp_path: Path) -> Bench:
    """A copy of all that the chain left, to damage."""
    return chain.copy(tmp_path / "output")


@pytest.fixture
def pretrained(chain: Bench, tmp_path: Path) -> Bench:
    """A copy of what the chain's pretrain left, and nothing more."""
    return chain.copy(tmp_path / "output", "pretrain")


@pytest.fixture
def empty(chain: Bench, tmp_path: Path) -> Bench:
    """The chain's images and an output folder that does not exist yet."""
    return Bench(chain.data, tmp_path / "output")
