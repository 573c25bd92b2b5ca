"""What -r and the list of finished runs say of runs that are not the one that is meant."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deeppatch.artifacts import Checkpoint, saved_settings
from deeppatch.cli.locating import SELECTION, Found, _difference
from deeppatch.cli.naming import own_settings, readable_name
from deeppatch.cli.options import DEFAULT_SEED
from deeppatch.cli.relearn.command import Options
from deeppatch.cli.resuming import starts_anew
from deeppatch.stage import Stage


def relearn(**named) -> Options:
    usual = {"model": "resnet8", "dataset": "digits", "seed": DEFAULT_SEED, "command": "", "defaults": {}}
    return Options(**{**usual, **named})


@pytest.fixture
def labels(tmp_path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n")
    return path


def stage_of(options: Options, place: Path, ending: str) -> Stage:
    folder = place / f"{readable_name('relearn', options)}{ending}"
    return Stage(place, folder, {"stage": "relearn", "settings": own_settings("relearn", options)})


def interrupted(options: Options, place: Path, ending: str) -> Path:
    stage = stage_of(options, place, ending)
    stage.unfinished.mkdir()
    Checkpoint(stage.unfinished / "checkpoint.pt", stage.facts["settings"], resume=False).save({"epoch": 1})
    return stage.unfinished


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "with another content of --labels"), ({"epochs": 3, "lr": 0.5}, "with another epochs, lr")],
)
def test_a_run_that_cannot_be_resumed_says_what_was_interrupted_in_its_place(tmp_path, labels, changes, said):
    options = relearn(labels=labels)
    left = interrupted(options, tmp_path, "-123abc")
    again = relearn(labels=labels, **changes)
    stage = stage_of(again, tmp_path, "-456def")
    line = starts_anew(stage, again)
    assert line == (
        f"-r finds nothing to go on with, and this run starts anew: interrupted were others, {left} ({said})"
    )


def test_a_run_that_can_be_resumed_or_has_no_neighbour_says_nothing(tmp_path, labels):
    options = relearn(labels=labels)
    assert starts_anew(stage_of(options, tmp_path, "-123abc"), options) is None
    interrupted(options, tmp_path, "-123abc")
    assert starts_anew(stage_of(options, tmp_path, "-123abc"), options) is None
    other = relearn(labels=labels, budget="7")
    assert starts_anew(stage_of(other, tmp_path, "-123abc"), other) is None, "another budget is another run"


def test_a_checkpoint_that_is_damaged_names_no_settings(tmp_path):
    path = tmp_path / "checkpoint.pt"
    Checkpoint(path, {"lr": 1}, resume=False).save({"weights": torch.ones(1)})
    assert saved_settings(path) == {"lr": 1}
    path.write_bytes(path.read_bytes()[:-40])
    assert saved_settings(path) is None


@pytest.mark.parametrize(
    ("digest", "is_default", "said"),
    [("a", False, "budget 20"), ("b", False, "budget 20, another base"), ("b", True, "budget 20, another base"),
     (None, False, "budget 20, another base"), (None, True, "budget 20")],
)  # fmt: skip
def test_a_base_is_another_one_only_where_it_is(digest, is_default, said):
    """Where the reader's own base is not known, that of default runs is taken for the same."""
    reader = relearn(budget="21")
    record = {
        "settings": json.loads(json.dumps({**own_settings("annotate", reader), "budget": "20"})),
        "defaults": own_settings("annotate", reader),
        "consumed": {"base": {"sha256": "a", "default": is_default}},
    }
    base = digest and Found(Path("w"), "", digest, None, is_default=False)
    assert _difference(SELECTION, record, SimpleNamespace(**vars(reader)), {"base": base, "patch": None}) == said
