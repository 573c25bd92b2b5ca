"""Files are whole or absent whoever writes at the same time, and a folder takes another's place at once."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from deeppatch import storage
from deeppatch.errors import UserError
from deeppatch.storage import RECORD, check_place, read_record, recover, replace_folder, write_bytes


def write_often(path: Path, letter: str, count: int) -> None:
    for _ in range(count):
        write_bytes(path, letter.encode() * 100_000)


def test_two_writers_of_one_file_never_fail_and_no_reader_sees_a_torn_one(tmp_path):
    path = tmp_path / "shared"
    write_bytes(path, b"a" * 100_000)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, letter, 100)) for letter in "ab"]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
        reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 10
    assert [each.name for each in tmp_path.iterdir()] == ["shared"]


def test_the_folder_is_synchronised_after_the_file_has_its_name(tmp_path, monkeypatch):
    seen, sync = [], os.fsync

    def note(handle):
        seen.append((os.fstat(handle).st_mode & 0o170000 == 0o040000, (tmp_path / "file").exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    write_bytes(tmp_path / "file", b"content")
    assert seen == [(False, False), (True, True)], "the file, its name, then the folder"


def test_an_error_names_the_file_and_leaves_no_part_of_it(tmp_path, monkeypatch):
    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as error:
        write_bytes(tmp_path / "file", b"content")
    assert error.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(storage, "_exchanged", lambda *_folders: False)
    old, new = fill(tmp_path / "stage", table="old", extra="old"), fill(tmp_path / ".new", table="new")
    (old / RECORD).write_text(json.dumps({"inputs": {}, "outputs": {"table": "", "extra": ""}}))
    (old / "notes.txt").write_text("a user's own")
    replace_folder(new, old)
    assert {path.name: path.read_text() for path in old.iterdir()} == {"table": "new", "notes.txt": "a user's own"}
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_what_a_kill_in_between_left_is_mended(tmp_path):
    place, aside = tmp_path / "stage", tmp_path / ".stage.replaced"
    fill(aside, table="old")
    recover(place)
    assert (place / "table").read_text() == "old"
    fill(aside, table="older")
    recover(place)
    assert (place / "table").read_text() == "old"
    assert not aside.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"outputs": {}}', "[" * 100_000])
def test_a_record_that_is_none_is_none(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    assert read_record(tmp_path) is None


def disk(free: float, total: float = 1e9):
    """Stand in for shutil.disk_usage."""
    return lambda _place: SimpleNamespace(free=free, total=total)


@pytest.mark.parametrize("there", ["", "stage", "stage/assess"])
def test_a_run_begins_only_with_enough_free_space(tmp_path, monkeypatch, there):
    folder = tmp_path / "stage" / "assess"
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(storage.shutil, "disk_usage", disk(storage.FREE_BYTES))
    check_place(folder)
    monkeypatch.setattr(storage.shutil, "disk_usage", disk(storage.FREE_BYTES - 1))
    with pytest.raises(UserError, match=r"no space is left for .*assess: 16.0 MiB are free, and a run begins with 16"):
        check_place(folder)
    monkeypatch.setattr(storage.shutil, "disk_usage", disk(0, 0))  # /proc and the like have no size
    check_place(folder)


@pytest.mark.parametrize(("made", "locked"), [("a/b", "a/b"), ("a", "a"), ("a/b/c", "a/b/c"), ("a/b/c", "a/b")])
def test_a_run_begins_only_where_it_may_write(tmp_path, monkeypatch, made, locked):
    (tmp_path / made).mkdir(parents=True)
    check_place(tmp_path / "a/b/c")
    refuse = tmp_path / locked
    monkeypatch.setattr(os, "access", lambda place, _mode: place != refuse)
    with pytest.raises(PermissionError) as error:
        check_place(tmp_path / "a/b/c")
    assert error.value.filename == str(refuse)
