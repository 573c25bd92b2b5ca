from __future__ import annotations

import errno
import json
import os
import random
import socket
from pathlib import Path

import pandas as pd
import pytest
import torch

from deeppatch import artifacts, stage, storage
from deeppatch.artifacts import Checkpoint, state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import MissingArtifact, StaleArtifact
from deeppatch.lock import _started
from deeppatch.stage import Stage

COMMAND = "python src/select.py -m resnet32 -d digits -f perfloss"


class FullDisk:
    """A file whose disk is full after its first bytes."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.file.close()

    def write(self, content):
        self.file.write(content[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(error):
    def failing(*_arguments, **_names):
        raise error

    return failing


FAILURES = {
    "fsync": (os, "fsync", fail(OSError(errno.ENOSPC, "No space left on device"))),
    "interrupt": (os, "fsync", fail(KeyboardInterrupt())),
    "write": (Path, "open", lambda path, mode, open_=Path.open: FullDisk(open_(path, mode))),
}


# --- atomic writes


def test_a_file_is_written_whole_in_a_folder_that_may_be_new(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    storage.write_bytes(path, b"first")
    storage.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failure):
    path = tmp_path / "file.bin"
    storage.write_bytes(path, b"the old content")
    monkeypatch.setattr(*FAILURES[failure])
    with pytest.raises((OSError, KeyboardInterrupt)):
        storage.write_bytes(path, b"the new content")
    monkeypatch.undo()
    assert path.read_bytes() == b"the old content"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    storage.write_bytes(path, b"the old content")
    monkeypatch.setattr(Path, "replace", fail(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        storage.write_bytes(path, b"the new content")
    monkeypatch.undo()
    assert path.read_bytes() == b"the old content"
    assert list(tmp_path.iterdir()) == [path]


# --- digests and tensors


def state() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(4, 3, 5, 5, generator=draw),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "half": torch.randn(3, generator=draw).bfloat16(),
        "empty": torch.zeros(0, 2),
    }


def test_a_digest_is_independent_of_memory_format_and_order():
    other = {key: state()[key] for key in reversed(state())}
    other["weight"] = other["weight"].to(memory_format=torch.channels_last)
    assert other["weight"].stride() != state()["weight"].stride()
    assert state_digest(other) == state_digest(state())
    larger = torch.zeros(8, 3, 5, 5)
    larger[::2] = state()["weight"]
    assert state_digest({**state(), "weight": larger[::2]}) == state_digest(state())


def test_a_digest_changes_with_one_bit():
    changed = state()
    changed["weight"].view(torch.int32)[3, 2, 4, 4] ^= 1
    assert (changed["weight"] != state()["weight"]).sum() == 1
    assert state_digest(changed) != state_digest(state())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {**s, "weight": s["weight"].view(3, 4, 5, 5)},
        lambda s: {**s, "flags": s["flags"].to(torch.uint8)},
        lambda s: {"heavy" if key == "weight" else key: value for key, value in s.items()},
        lambda s: {key: value for key, value in s.items() if key != "empty"},
        lambda s: {**s, "empty": torch.zeros(2, 0)},
    ],
    ids=["shape", "type", "name", "missing", "empty shape"],
)
def test_a_digest_covers_names_types_and_shapes(change):
    assert state_digest(change(state())) != state_digest(state())


def test_a_digest_and_saving_leave_the_tensors_as_they_are():
    given = state()
    given["weight"] = given["weight"].to(memory_format=torch.channels_last).requires_grad_()
    kept = dict(given)
    state_digest(given)
    tensors_to_bytes(given)
    assert all(given[key] is kept[key] for key in kept)
    assert given["weight"].is_contiguous(memory_format=torch.channels_last)


def test_tensors_and_metadata_come_back(tmp_path):
    meta = {"kind": "replace", "channels": {"conv1": [3, 1]}, "ratio": 0.25}
    tensors, found = tensors_from_bytes(tensors_to_bytes(state(), meta), tmp_path)
    assert found == meta
    assert tensors.keys() == state().keys()
    for key, value in state().items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


def test_bytes_repeat_whatever_the_order_of_keys_and_the_memory_format():
    meta = {"a": 1, "b": [2]}
    other = {key: state()[key] for key in reversed(state())}
    other["weight"] = other["weight"].to(memory_format=torch.channels_last)
    assert tensors_to_bytes(other, {"b": [2], "a": 1}) == tensors_to_bytes(state(), meta)
    assert tensors_to_bytes(state(), {**meta, "a": 2}) != tensors_to_bytes(state(), meta)


def test_a_file_without_our_metadata_has_none():
    content = artifacts.safetensors.torch.save({"a": torch.ones(2)})
    assert tensors_from_bytes(content, Path("x"))[1] == {}


def damaged(content: bytes) -> list[bytes]:
    """Truncated, overwritten and foreign contents in place of `content`."""
    draw = random.Random(3)  # noqa: S311
    cut = [content[: draw.randrange(len(content))] for _ in range(30)]
    header = [content[:place] + b"\xff" + content[place + 1 :] for place in range(0, 60, 2)]
    return [b"", b"P", b"hello world", b"\xff" * 64, content + b"x", *cut, *header]


def test_damaged_tensors_are_named_with_what_to_do():
    for content in damaged(tensors_to_bytes(state(), {"a": 1})):
        with pytest.raises(StaleArtifact, match=r"^output/x\.safetensors is damaged, or is not a safetensors file"):
            tensors_from_bytes(content, Path("output/x.safetensors"))


# --- checkpoints

SETTINGS = {"lr": 0.1, "model": "resnet8", "channels": {"conv1": [1, 2]}}


def checkpoint(path: Path, *, resume: bool = True, **changes) -> Checkpoint:
    return Checkpoint(path / "checkpoint.pt", {**SETTINGS, **changes}, resume)


def test_a_checkpoint_comes_back_to_the_run_that_resumes(tmp_path):
    checkpoint(tmp_path).save({"epoch": 3, "model": state(), "history": [0.5]})
    found = checkpoint(tmp_path).load()
    assert found["epoch"] == 3
    assert state_digest(found["model"]) == state_digest(state())


def test_a_run_that_does_not_resume_drops_the_checkpoint(tmp_path):
    checkpoint(tmp_path).save({"epoch": 3})
    assert checkpoint(tmp_path, resume=False).load() is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert checkpoint(tmp_path).load() is None
    assert checkpoint(tmp_path, resume=False).load() is None


def test_a_checkpoint_goes_when_the_run_is_finished(tmp_path):
    checkpoint(tmp_path).save({"epoch": 3})
    checkpoint(tmp_path).remove()
    checkpoint(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint(tmp_path).save({"epoch": 3})
    monkeypatch.setattr(*FAILURES["write"])
    with pytest.raises(OSError, match="No space left"):
        checkpoint(tmp_path).save({"epoch": 4})
    monkeypatch.undo()
    assert checkpoint(tmp_path).load() == {"epoch": 3}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    saved = checkpoint(tmp_path)
    saved.save({"weights": torch.arange(1000.0)})
    content = bytearray(saved.path.read_bytes())
    content[len(content) // 2] ^= 1
    saved.path.write_bytes(content)
    with pytest.raises(StaleArtifact, match="is damaged"):
        saved.load()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.2}, "(lr)"),
        ({"lr": 0.2, "channels": {"conv1": [1, 3]}}, "(channels, lr)"),
        ({"base": "abc"}, "(base)"),
    ],
)
def test_changed_settings_are_named(tmp_path, changes, named):
    checkpoint(tmp_path).save({"epoch": 3})
    with pytest.raises(StaleArtifact) as error:
        checkpoint(tmp_path, **changes).load()
    assert named in str(error.value)
    assert "without -r" in str(error.value)
    assert str(tmp_path / "checkpoint.pt") in str(error.value)


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "deeppatch")
    checkpoint(tmp_path).save({"epoch": 3})
    assert checkpoint(tmp_path).load() == {"epoch": 3}
    assert caplog.text == ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert checkpoint(tmp_path).load() == {"epoch": 3}
    assert "threads and goes on with 7: bytes will differ by rounding" in caplog.text


def test_the_order_of_settings_does_not_matter(tmp_path):
    checkpoint(tmp_path).save({"epoch": 3})
    reordered = dict(reversed(SETTINGS.items()))
    assert Checkpoint(tmp_path / "checkpoint.pt", reordered, True).load() == {"epoch": 3}


def test_a_checkpoint_with_further_settings_is_the_same_file_which_they_guard(tmp_path):
    checkpoint(tmp_path, resume=False).with_settings(start="a").save({"epoch": 3})
    again = checkpoint(tmp_path)
    assert again.with_settings(start="a").load() == {"epoch": 3}
    assert checkpoint(tmp_path, start="a").load() == {"epoch": 3}
    for other in (again, again.with_settings(start="b")):
        with pytest.raises(StaleArtifact, match=r"\(start\)"):
            other.load()
    silent = Checkpoint(tmp_path / "checkpoint.pt", SETTINGS, True, writes=False)
    assert not silent.with_settings(start="a").writes


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named_with_what_to_do(tmp_path, share):
    checkpoint(tmp_path).save({"epoch": 3, "model": state()})
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StaleArtifact, match=r"checkpoint\.pt is damaged; delete it and run without -r"):
        checkpoint(tmp_path).load()


@pytest.mark.parametrize("content", [b"P", b"PK", b"PK\x03\x04", b"garbage", b"\xff" * 100, b"<html>404</html>"])
def test_garbage_is_no_checkpoint(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(StaleArtifact, match=r"checkpoint\.pt is damaged; delete it and run without -r") as error:
        checkpoint(tmp_path).load()
    assert "\n" not in str(error.value)


# --- stages


def facts(**settings) -> dict:
    return {"command": COMMAND, "settings": {"model": "resnet8", **settings}, "git": None, "torch": "2"}


@pytest.fixture
def output(tmp_path):
    """An output folder in which `base` left weights and `assess` left a ranking made from them."""
    output = tmp_path / "output"
    base = Stage(output, output / "base", facts())
    base.write("weights.bin", b"weights")
    base.finish()
    assess = Stage(output, output / "assess", facts())
    assess.read(output / "base" / "weights.bin", "make base")
    assess.write_json("ranking.json", {"conv1": [1, 0]})
    assess.finish()
    return output


@pytest.fixture
def later(output):
    """A stage that has read nothing yet."""
    return Stage(output, output / "correct", facts())


def test_a_stage_reads_what_an_earlier_one_left_and_records_its_hash(output, later):
    content = later.read(output / "assess" / "ranking.json", COMMAND)
    assert json.loads(content) == {"conv1": [1, 0]}
    assert later.inputs == {"assess/ranking.json": storage.sha256(content)}


@pytest.mark.parametrize("lost", ["ranking.json", "run.json"])
def test_a_missing_file_or_record_names_the_file_and_the_command(output, later, lost):
    (output / "assess" / lost).unlink()
    path = output / "assess" / "ranking.json"
    with pytest.raises(MissingArtifact) as error:
        later.read(path, COMMAND)
    assert str(error.value) == f"{path} is missing; make it with: {COMMAND}"


def test_a_changed_file_is_refused(output, later):
    path = output / "assess" / "ranking.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"2"))
    with pytest.raises(StaleArtifact) as error:
        later.read(path, COMMAND)
    assert str(path) in str(error.value)
    assert str(error.value).endswith(f"make it again with: {COMMAND}")


def test_a_file_that_its_stage_did_not_record_is_refused(output, later):
    (output / "assess" / "other.json").write_text("{}")
    with pytest.raises(StaleArtifact, match="other.json"):
        later.read(output / "assess" / "other.json", COMMAND)


def test_a_file_made_from_another_input_than_the_one_at_hand_is_refused(output, later):
    again = Stage(output, output / "base", facts())
    again.write("weights.bin", b"other weights")
    again.finish()
    with pytest.raises(StaleArtifact) as error:
        later.read(output / "assess" / "ranking.json", COMMAND)
    assert str(error.value) == (
        f"{output / 'assess' / 'ranking.json'} was made from another {output / 'base' / 'weights.bin'}; "
        f"make it again with: {COMMAND}"
    )
    assert later.inputs == {}


def test_the_same_input_made_again_is_accepted(output, later):
    again = Stage(output, output / "base", facts())
    again.write("weights.bin", b"weights")
    again.finish()
    assert later.read(output / "assess" / "ranking.json", COMMAND)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"{}", b'{"outputs": {}}', b"null", b"\xff\xfe"])
def test_a_damaged_record_names_the_command(output, later, record):
    (output / "assess" / "run.json").write_bytes(record)
    with pytest.raises(StaleArtifact, match=r"run\.json is damaged; make it again with: python src/select\.py"):
        later.read(output / "assess" / "ranking.json", COMMAND)


def test_a_user_s_file_outside_the_output_is_recorded_in_full_and_checked_too(output, tmp_path):
    given = tmp_path / "given.pt"
    given.write_bytes(b"given")
    stage = Stage(output, output / "tuned", facts())
    stage.inherit(given, b"given")
    stage.write("weights.bin", b"tuned")
    stage.finish()
    assert stage.inputs == {str(given.resolve()): storage.sha256(b"given")}
    later = Stage(output, output / "correct", facts())
    later.read(output / "tuned" / "weights.bin", COMMAND)
    given.write_bytes(b"another")
    with pytest.raises(StaleArtifact, match="was made from another .*given.pt"):
        later.read(output / "tuned" / "weights.bin", COMMAND)


def test_an_output_folder_given_relative_makes_the_same_record(output, monkeypatch):
    monkeypatch.chdir(output.parent)
    stage = Stage(Path("output"), Path("output/correct"), facts())
    stage.read(Path("output/assess/ranking.json"), COMMAND)
    assert stage.inputs.keys() == {"assess/ranking.json"}


def test_the_record_holds_facts_time_inputs_and_outputs(output, later):
    later.read(output / "assess" / "ranking.json", COMMAND)
    patch = later.write("patch.bin", b"patch")
    table = later.write_table("history.csv", pd.DataFrame({"epoch": [1, 2], "loss": [1 / 3, 0.5]}))
    assert not (later.folder / "run.json").exists(), "outputs without a record are those of an unfinished run"
    later.finish()
    record = json.loads((later.folder / "run.json").read_text())
    assert {name: record[name] for name in facts()} == facts()
    assert record["wall_seconds"] >= 0
    assert record["inputs"] == later.inputs
    assert record["outputs"] == {
        path.name: storage.sha256(path.read_bytes()) for path in (patch, table)
    }  # fmt: skip
    assert table.read_text() == "epoch,loss\n1,0.333333\n2,0.5\n"
    assert sorted(path.name for path in later.folder.iterdir()) == ["history.csv", "patch.bin", "run.json"]


def test_a_stage_that_begins_anew_leaves_the_finished_run_alone_until_its_end(output):
    stage, path = Stage(output, output / "assess", facts()), output / "assess" / "ranking.json"
    before = path.read_bytes()
    stage.write("ranking.json", b"another")
    assert stage.finished() is not None
    assert Stage(output, output / "correct", facts()).read(path, COMMAND) == before
    stage.finish()
    assert path.read_bytes() == b"another"
    assert not stage.unfinished.exists()


def test_a_run_is_finished_for_its_own_settings_only(output):
    record = Stage(output, output / "assess", facts()).finished()
    assert record is not None
    assert record["outputs"].keys() == {"ranking.json"}
    assert Stage(output, output / "assess", facts(lr=1)).finished() is None
    (output / "assess" / "run.json").write_text("{")
    assert Stage(output, output / "assess", facts()).finished() is None


def test_the_revision_is_that_of_the_source_tree_or_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    revision = stage.git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(stage, "__file__", str(tmp_path / "stage.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert stage.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert stage.git_revision() is None, "without git there is no revision and no error"


def test_one_that_does_not_write_leaves_everything_to_the_one_that_does(tmp_path):
    writer, silent = (Checkpoint(tmp_path / "checkpoint.pt", SETTINGS, True, writes=writes) for writes in (True, False))
    silent.save({"epoch": 1})
    assert writer.load() is None
    writer.save({"epoch": 2})
    silent.remove()
    Checkpoint(tmp_path / "checkpoint.pt", SETTINGS, False, writes=False)
    assert silent.load() == {"epoch": 2}
    stage = Stage(tmp_path, tmp_path / "stage", facts(), writes=False)
    assert stage.write("weights.txt", b"x") == tmp_path / "stage" / "weights.txt"
    stage.finish()
    assert not (tmp_path / "stage").exists()


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stage, "time", clock)
    return clock


def test_the_time_of_interrupted_runs_is_added_up(tmp_path, clock):
    """Two phases, each with a checkpoint; the first run is killed in the second phase, the next one, too."""

    def run(first: float, second: float) -> Stage:
        run = Stage(tmp_path, tmp_path / "stage", {"settings": {}})
        run.begin(resume=True)
        one, two = (Checkpoint(run.unfinished / name, {}, resume=True, watch=run.watch) for name in ("one", "two"))
        for name, checkpoint, seconds in (("first", one, first), ("second", two, second)):
            with run.watch.phase(name):
                checkpoint.load()
                clock.now += seconds
                checkpoint.save({})
                checkpoint.load()  # the run's own state adds nothing
        clock.now += 1000  # lost: no checkpoint knows of it
        run._lock.release()
        return run

    run(10.0, 5.0)
    run(1.0, 2.0)
    last = Stage(tmp_path, tmp_path / "stage", {"settings": {}})
    last.begin(resume=True)
    for name in ("one", "two"):
        Checkpoint(last.unfinished / name, {}, resume=True, watch=last.watch).load()
    clock.now += 0.5
    last.finish()
    record = json.loads((tmp_path / "stage" / "run.json").read_bytes())
    assert record["wall_seconds"] == 10 + 5 + 1 + 2 + 0.5
    assert record["seconds"] == {"first": 11.0, "second": 7.0}


@pytest.mark.parametrize(
    "state", [None, 3, {}, {"run": "a", "seconds": "3", "phases": {}}, {"run": "a", "seconds": 1.0}]
)
def test_what_is_no_time_adds_none(clock, state):
    watch = stage.Stopwatch()
    watch.go_on(state)
    assert (watch.seconds, watch.phases) == (0, {})


def test_what_a_run_has_left_that_was_killed_when_it_had_finished_goes(tmp_path):
    done = Stage(tmp_path, tmp_path / "stage", {"settings": {}})
    done.write("a.json", b"{}")
    done.finish()
    lock = tmp_path / ".stage.lock"
    lock.write_text(json.dumps({"process": 2**22 + 1, "started": None, "host": socket.gethostname()}))
    (done.unfinished / "old").mkdir(parents=True)
    Stage(tmp_path, tmp_path / "stage", {"settings": {}}).tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]
    busy = Stage(tmp_path, tmp_path / "stage", {"settings": {}})
    busy.begin()
    lock.write_text(json.dumps({"process": 1, "started": _started(1), "host": socket.gethostname()}))
    Stage(tmp_path, tmp_path / "stage", {"settings": {}}).tidy()
    assert lock.exists(), "of a process that runs"
