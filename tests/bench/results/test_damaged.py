"""Run folders that are damaged in hundreds of ways: every one is read, or told in a sentence."""

from __future__ import annotations

import copy
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.reports import made
from vrambench.bench.results.run_info import read_run_info
from vrambench.bench.results.store import RunFolder, Unreadable, dump_result
from vrambench.methods.errors import ConfigurationError
from vrambench.reports.page.html import render
from vrambench.reports.page.views.environment import VIEW
from vrambench.reports.read import read_run
from vrambench.reports.report import Report
from vrambench.reports.text.terminal import print_table

RESULT = made.full("a1")
INFO: dict[str, Any] = {
    **made.run_of([RESULT], more_cells=[{"id": "a2", "name": "later", **made.cell()}]).info,
    "resumed_at": ["2026-05-05T10:11:12+00:00"],
    "timeout_seconds": 60.0,
    "jobs": 1,
}
ODD = [None, True, 0, -1, 10**30, 1e308, float("nan"), "", "\x00\ud800", "x" * 5000, [], [None], {}, {"": []}, [[[[]]]]]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    folder.write_info(INFO)
    folder.write_result(RESULT)
    folder.release()
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inside for place in places(one, (*path, key)))]


def damaged(text: str, chance: random.Random) -> bytes:
    """The document with one thing wrong: in its bytes, or a value that is gone, odd, or somewhere else."""
    data = bytearray(text.encode())
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 1:
        data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    if kind == 2:
        at = chance.randrange(len(data))
        return bytes(data[:at] + data[at + chance.randrange(1, 40) :])
    document = {"root": json.loads(text)}
    path = chance.choice(places(document["root"]))
    parent: Any = document
    for key in ("root", *path)[:-1]:
        parent = parent[key]
    last = ("root", *path)[-1]
    if kind == 3 and path:
        del parent[last]
    elif kind == 4:
        parent[last] = copy.deepcopy(chance.choice([document["root"], parent]))
    else:
        parent[last] = chance.choice(ODD)
    return json.dumps(document["root"]).encode()


def shown(folder: Path, whole: bool) -> str | None:
    """What is told of a folder: the one sentence of error, None where it is shown. `whole`: the page, which takes its time, and
    not only what it says of the run."""
    try:
        run = read_run(folder, "run")
        assert VIEW.data(Report([run])).runs
        if whole:
            assert "</html>" in render([run], draw=lambda charts: [""] * len(charts))
        print_table([folder], io.StringIO())
    except ConfigurationError as error:
        return error.message
    return None


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_run_json_is_read_or_told_in_a_sentence(seed: int, folder: RunFolder) -> None:
    chance = random.Random(seed)
    file = folder.path / "run.json"
    text, told = file.read_text(), 0
    for number in range(50):
        file.write_bytes(damaged(text, chance))
        said = shown(folder.path, number % 25 == 0)
        if said is not None:
            assert str(file) in said
            assert len(said) < len(str(file)) + 300
            assert "\n" not in said
            told += 1
    assert told > 10


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_result_is_a_row_that_says_so(seed: int, folder: RunFolder) -> None:
    chance = random.Random(1000 + seed)
    file = folder.cells / f"{RESULT.id}.json"
    text = file.read_text()
    for number in range(50):
        file.write_bytes(damaged(text, chance))
        assert shown(folder.path, number % 25 == 0) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (" ", "cannot be read: it is empty"),
        ("[" * 100_000, "cannot be read: nested too deeply"),
        ('{"schema": 1, "cells": ' + "[" * 40 + "]" * 40 + "}", "cannot be read: nested too deeply"),
        ("9" * 5000, "cannot be read: Exceeds the limit"),
        ("[]", "is not of schema 1"),
        ('{"schema": true}', "is not of schema 1"),
        ('{"schema": 2}', "is of schema 2, which a newer vrambench wrote; this version reads schema 1"),
        ('{"schema": 1, "repeat": 1, "cells": []}', "cannot be read: device: is not there"),
        (
            '{"schema": 1, "device": "cpu", "repeat": 1, "cells": [{"name": "x"}]}',
            "cannot be read: cells.0.id: is not there",
        ),
        (
            '{"schema": 1, "device": "cpu", "repeat": 1, "cells": {"a": 1}}',
            "cannot be read: cells: a mapping: must be a list",
        ),
        (
            '{"schema": 1, "device": "cpu", "repeat": 1, "cells": [], "environment": "none"}',
            "cannot be read: environment: 'none': must be a mapping (name: value)",
        ),
    ],
)
def test_what_is_wrong_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_run_info(file)
    assert caught.value.message.startswith(f"{file} {message}")


def test_a_run_json_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ConfigurationError, match="is no regular file"):
        RunFolder.open(tmp_path)


def test_run_json_is_written_as_it_was_asked_for(folder: RunFolder) -> None:
    assert json.loads((folder.path / "run.json").read_text()) == INFO
    assert list(folder.info) == list(json.loads((folder.path / "run.json").read_text()))


def test_a_later_versions_keys_are_passed_over_in_results_and_kept_in_run_json(folder: RunFolder) -> None:
    data = json.loads(dump_result(RESULT))
    data |= {"colour": "green", "memory": data["memory"] | {"unified_bytes": 7}}
    (folder.cells / "a1.json").write_text(json.dumps(data))
    assert folder.read("a1") == RESULT
    folder.write_info(INFO | {"site": "here", "environment": {"rack": 4}})
    assert RunFolder.open(folder.path).info["environment"] == {"rack": 4}


def test_bytes_below_nothing_are_no_result(folder: RunFolder) -> None:
    data = json.loads(dump_result(RESULT))
    data["memory"]["allocated_bytes"] = -2414
    (folder.cells / "a1.json").write_text(json.dumps(data))
    found = folder.read("a1")
    assert isinstance(found, Unreadable)
    assert found.reason == "not a readable result: memory.allocated_bytes: -2414: must be at least 0"


def test_a_newer_schema_is_said_and_no_folder_or_pipe_stops_a_report(folder: RunFolder) -> None:
    import os

    (folder.cells / "a1.json").write_text(json.dumps(json.loads(dump_result(RESULT)) | {"schema": 2}))
    (folder.cells / "a2.json").mkdir()
    os.mkfifo(folder.cells / "a3.json")
    (folder.cells / "a4.json").symlink_to("nowhere")
    newer = folder.read("a1")
    assert isinstance(newer, Unreadable)
    assert (newer.newer, newer.reason) == (
        True,
        "of schema 2, which a newer vrambench wrote; this version reads schema 1",
    )
    assert [one.file.name for one in folder.unreadable] == ["a1.json", "a2.json", "a3.json", "a4.json"]
    page = render([read_run(folder.path, "run")], draw=lambda charts: [""] * len(charts))
    assert "which a newer vrambench wrote" in page
    assert folder.set_aside("a2") == folder.cells / "a2.json.corrupted-1"


def test_a_damaged_run_json_has_a_way_on_and_a_file_is_no_folder(folder: RunFolder) -> None:
    file = folder.path / "run.json"
    file.write_text("{")
    with pytest.raises(ConfigurationError, match=r"run\.json cannot be read: .+; move it away, and `run --out`"):
        read_run_info(file)
    with pytest.raises(ConfigurationError, match=r"run\.json is not a run's folder: it is a file$"):
        read_run_info(file / "run.json")
