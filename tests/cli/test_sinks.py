"""--sink: a stage logs what history.csv has and the files that it leaves, and its results stay what they are."""

from __future__ import annotations

import pandas as pd
import pytest

from deeppatch import training
from deeppatch.errors import UserError
from deeppatch.report import sinks


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, *arguments) -> None:
        self.opened = arguments
        self.scalars, self.files, self.closed = [], [], False

    def log_scalar(self, *values) -> None:
        self.scalars.append(values)

    def log_file(self, path) -> None:
        self.files.append(path.name)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch) -> list[Kept]:
    found: list[Kept] = []

    def open_sink(*arguments):
        found.append(Kept(*arguments))
        return found[-1]

    monkeypatch.setattr(sinks, "open_sink", open_sink)
    return found


def test_a_training_is_logged(pretrained, opened):
    line = "correct -c finetune --crt_epoch 2 --lr 0.1"
    pretrained.ran(line)
    before = pretrained.hashes("correct-finetune")
    pretrained.ran(f"{line} --sink tensorboard")
    assert pretrained.hashes("correct-finetune") == before, "the folder and its files are the same"
    (sink,) = opened
    name, folder, experiment = sink.opened
    assert (name, folder) == ("tensorboard", pretrained.at("correct-finetune"))
    assert experiment.startswith("deeppatch resnet8 folder:")
    table = pd.read_csv(pretrained.at("correct-finetune/history.csv"))
    want = {(f"finetune/{name}", row["epoch"]): row[name] for row in table.to_dict("records")
            for name in ("loss", "val_accuracy_percent")}  # fmt: skip
    assert {(name, step): value for name, value, step in sink.scalars} == pytest.approx(want, rel=1e-5)
    assert len(sink.scalars) == 4
    assert sink.files == ["history.csv", "metrics.json", "run.json"]
    assert sink.closed


def test_a_run_that_fails_logs_no_files_of_an_earlier_one(pretrained, opened, monkeypatch):
    line = "correct -c finetune --crt_epoch 1 --sink mlflow"
    pretrained.ran(line)

    def failing(*_arguments, **_options):
        raise UserError("it does not work")

    monkeypatch.setattr(training, "train_epoch", failing)
    assert pretrained.refused(line) == "it does not work"
    first, second = opened
    assert first.files
    assert second.files == []
    assert second.closed


def test_without_the_package_nothing_is_begun(pretrained, monkeypatch):
    def missing(*_arguments):
        raise UserError("--sink mlflow needs mlflow; install it with: pip install 'deeppatch[sinks]'")

    monkeypatch.setattr(sinks, "open_sink", missing)
    said = pretrained.refused("correct -c finetune --crt_epoch 1 --sink mlflow")
    assert "deeppatch[sinks]" in said
    assert not pretrained.at("correct-finetune").exists()


def test_another_name_is_a_mistake(pretrained):
    said = pretrained.refused("eval --sink tensorbord")
    assert "--sink: invalid choice: tensorbord (did you mean tensorboard?)" in said
