"""Sinks get the values of history.csv, whatever stands behind them; the packages are faked."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import deeppatch as dp
from deeppatch import progress
from deeppatch.errors import UserError
from deeppatch.report.names import SINKS
from deeppatch.report.sinks import MLflowSink, TensorBoardSink, logging_to, open_sink


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.files: list[Path] = []
        self.closed = 0

    def log_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def log_file(self, path: Path) -> None:
        self.files.append(path)

    def close(self) -> None:
        self.closed += 1


class FakeClient:
    """Stands in for mlflow.MlflowClient; it refuses names that MLflow refuses."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict] = {}

    def __call__(self) -> FakeClient:
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        assert name not in self.experiments
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment, run_name):
        self.runs[run_name] = {"experiment": experiment, "metrics": [], "artifacts": [], "ended": False}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_metric(self, run, key, value, step):
        assert not set(key) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. :/")
        self.runs[run]["metrics"].append((key, value, step))

    def log_artifact(self, run, path):
        self.runs[run]["artifacts"].append(path)

    def set_terminated(self, run):
        self.runs[run]["ended"] = True


@pytest.fixture
def mlflow(monkeypatch) -> FakeClient:
    module = ModuleType("mlflow")
    module.MlflowClient = FakeClient()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module.MlflowClient


@pytest.fixture
def tensorboard(monkeypatch) -> list:
    """What a fake torch.utils.tensorboard has written."""
    written: list = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(("folder", folder))

        def add_scalar(self, *values):
            written.append(values)

        def add_text(self, *values):
            written.append(values)

        def close(self):
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return written


def train(epochs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    pixels, labels = torch.rand(24, 3, 8, 8), torch.arange(24) % 2
    return dp.finetune(network, dp.Data.of((pixels, labels), (pixels, labels)), "gaussian-blur", epochs=epochs)


def test_every_epoch_is_logged_and_nothing_else_changes(caplog, capsys):
    sink = Kept()
    before = (list(progress.MEASURED.handlers), progress.MEASURED.level, progress.MEASURED.propagate)
    plain = train()
    with caplog.at_level(logging.DEBUG), logging_to(sink):
        logged = train()
    assert (list(progress.MEASURED.handlers), progress.MEASURED.level, progress.MEASURED.propagate) == before
    assert sink.closed == 1
    history = logged.history
    assert sink.scalars == [
        (f"finetune/{name}", value, epoch)
        for epoch, (loss, accuracy) in enumerate(zip(history.loss, history.accuracy, strict=True), start=1)
        for name, value in (("loss", loss), ("val_accuracy_percent", 100 * accuracy))
    ]
    assert history == plain.history
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), logged.parameters(), strict=True))
    assert "deeppatch.measured" not in {record.name for record in caplog.records}
    assert capsys.readouterr() == ("", "")
    train(1)
    assert len(sink.scalars) == 6


def test_a_sink_is_closed_whatever_happens():
    sink = Kept()
    with pytest.raises(ValueError, match="broken"), logging_to(sink):
        raise ValueError("broken")
    assert sink.closed == 1


def test_a_sink_that_fails_ends_no_training(capsys):
    class OutOfReach(Kept):
        def log_scalar(self, name, value, step):
            super().log_scalar(name, value, step)
            if step == 2:
                raise OSError("no route\nto host")

    sink = OutOfReach()
    with progress.console_output(), logging_to(sink) as guarded:
        history = train().history
        guarded.log_file(Path("history.csv"))
    assert len(history.loss) == 3
    assert [step for _name, _value, step in sink.scalars] == [1, 1, 2]
    assert (sink.files, sink.closed) == ([], 1)
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1
    assert "WARNING: OutOfReach failed (no route to host); nothing further is logged to it" in said


def test_values_that_are_no_numbers_are_left_out():
    sink = Kept()
    with logging_to(sink):
        progress.measured("patch", 4, loss=float("nan"), accuracy=2.0)
    assert sink.scalars == [("patch/accuracy", 2.0, 4)]


def test_values_of_relearn_have_what_it_watches():
    from deeppatch.training import History

    assert History([0.5], [0.25], [{"test": 0.75, "entropy": 1, "note": "x"}]).latest() == {
        "loss": 0.5, "val_accuracy_percent": 25.0, "test": 0.75, "entropy": 1.0,
    }  # fmt: skip
    assert History([0.5], [0.25], [3]).latest() == {"loss": 0.5, "val_accuracy_percent": 25.0}


def test_tensorboard(tensorboard, tmp_path):
    table, picture = tmp_path / "history.csv", tmp_path / "plot.png"
    table.write_text("epoch,loss\n1,0.5\n")
    picture.write_bytes(b"\x89PNG")
    sink = open_sink("tensorboard", tmp_path / "correct-finetune", "deeppatch x")
    sink.log_scalar("finetune/loss", 0.5, 1)
    for path in (table, picture):
        sink.log_file(path)
    sink.close()
    assert tensorboard == [
        ("folder", str(tmp_path / "tensorboard" / "correct-finetune")), ("finetune/loss", 0.5, 1),
        ("history.csv", "    epoch,loss\n    1,0.5"), "closed",
    ]  # fmt: skip


def test_mlflow(mlflow, tmp_path):
    for run in ("correct-finetune", "correct-norms"):
        sink = open_sink("mlflow", tmp_path / run, "deeppatch resnet32 cifar10")
        sink.log_scalar("compare/switched (probe) s=1", 0.5, 1)
        sink.log_file(tmp_path / "history.csv")
        sink.close()
    assert mlflow.experiments == {"deeppatch resnet32 cifar10": "0"}
    assert mlflow.runs["correct-norms"] == {
        "experiment": "0", "metrics": [("compare/switched _probe_ s_1", 0.5, 1)],
        "artifacts": [str(tmp_path / "history.csv")], "ended": True,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing_is_named_with_the_extra(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"--sink {name} needs {name}; .*deeppatch\[sinks\]"):
        open_sink(name, tmp_path, "x")


def test_every_name_is_a_sink(mlflow, tensorboard, tmp_path):
    kinds = {name: type(open_sink(name, tmp_path / "run", "x")) for name in SINKS}
    assert kinds == {"mlflow": MLflowSink, "tensorboard": TensorBoardSink}
    with pytest.raises(UserError, match=r"sink='tensorbord' \(did you mean tensorboard\?\)"):
        open_sink("tensorbord", tmp_path, "x")
