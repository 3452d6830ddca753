"""The run folder: what is written is what is read, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vrambench.bench.results.records import Learning, Memory, Phase, Result, Sample
from vrambench.bench.results.store import RunFolder, dump_result, write_atomically
from vrambench.methods.errors import ConfigurationError

RESULT = Result(
    id="0123456789ab",
    name="fp32 none",
    cell={"model": "tiny"},
    status="ok",
    memory=Memory(allocated_bytes=5),
    phases=(Phase(name="load", step=None, seconds=0.25),),
    learning=Learning(loss=(1.0, None)),
    samples=(Sample(status="ok"),),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    folder.write_info({"device": "cpu", "repeat": 1, "cells": [{"id": RESULT.id, "name": RESULT.name}]})
    return folder


def test_a_result_is_read_as_it_was_written(folder: RunFolder) -> None:
    folder.write_result(RESULT)
    assert folder.read_result(RESULT.id) == RESULT
    assert RunFolder.open(folder.path).results() == RunFolder.open(str(folder.path)).results() == [RESULT]


def test_the_file_is_schema_1_with_every_key_of_the_design(folder: RunFolder) -> None:
    data = json.loads(dump_result(RESULT))
    assert next(iter(data.items())) == ("schema", 1)
    assert {"id", "name", "cell", "status", "reason", "phase", "source", "memory", "phases", "roles"} <= set(data)
    assert {"throughput", "learning", "parameters", "predicted", "environment"} <= set(data)
    assert data["memory"]["reserved_bytes"] is None, "unknown is null"
    assert data["learning"]["loss"] == [1.0, None]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "\x00\xff", '{"schema": 1, "id": "other"}'])
def test_what_is_no_result_is_none_and_listed_as_corrupted(folder: RunFolder, content: str) -> None:
    (folder.cells / f"{RESULT.id}.json").write_text(content)
    assert folder.read_result(RESULT.id) is None
    assert folder.results() == []
    assert [one.file.name for one in folder.unreadable] == [f"{RESULT.id}.json"]


def test_a_file_under_another_cells_name_is_none(folder: RunFolder) -> None:
    (folder.cells / "ffffffffffff.json").write_text(dump_result(RESULT))
    assert folder.read_result("ffffffffffff") is None


def test_setting_aside_never_overwrites(folder: RunFolder) -> None:
    file = folder.cells / f"{RESULT.id}.json"
    for text in ("first", "second"):
        file.write_text(text)
        assert folder.set_aside(RESULT.id)
    assert folder.set_aside(RESULT.id) is None
    assert sorted(one.file.read_text() for one in folder.unreadable) == ["first", "second"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_folders_that_are_no_runs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a run's folder: it has no run\.json"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigurationError, match="of schema 99, which a newer vrambench wrote"):
        RunFolder.open(tmp_path)


def test_results_that_may_not_be_read_are_not_taken_for_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != folder.cells)  # as to another user, who is not root
    with pytest.raises(ConfigurationError, match=r"cells: cannot be read: Permission denied"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize(("content", "said"), [(b'{"schema": NaN}', "NaN is no number"), (b"\xa3\xff", "not a text")])
def test_what_is_no_json_is_told_in_plain_words(folder: RunFolder, content: bytes, said: str) -> None:
    (folder.cells / f"{RESULT.id}.json").write_bytes(content)
    assert [said in one.reason for one in folder.unreadable] == [True]


def test_a_folder_that_cannot_be_made_is_an_error_about_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"^out: .* cannot be made"):
        RunFolder(tmp_path / "file" / "run").acquire()


def test_what_a_killed_run_was_writing_is_swept_under_the_lock(folder: RunFolder) -> None:
    folder.release()
    left = [folder.cells / f".{RESULT.id}.json.x1y2.tmp", folder.path / ".run.json.0123.tmp"]
    stays = [folder.cells / "notes.tmp", folder.path / ".report.html.0123.tmp"]
    for file in (*left, *stays):
        file.write_text("half")
    RunFolder(folder.path).acquire()
    assert not [file for file in left if file.exists()]
    assert all(file.exists() for file in stays)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_that_the_user_gives(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
