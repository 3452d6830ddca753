"""`vrambench explain`: what it prints, its JSON, and what is no recording."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from tests.bench.allocator.made import MIB
from tests.bench.allocator.test_explained import RECORDINGS, out_of_memory
from vrambench.bench.commands.app import main


@pytest.fixture
def ran_out(tmp_path: Path) -> Path:
    recording = out_of_memory()
    for entry in recording["device_traces"][0]:
        entry["frames"] = [{"filename": "/job/train.py", "line": 5, "name": "step"}]
    path = tmp_path / "oom.pickle"
    path.write_bytes(pickle.dumps(recording))
    return path


def test_a_job_that_ran_out_is_told_what_to_set(ran_out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(ran_out)]) == 0
    told = capsys.readouterr().out
    assert "memory ran out: 36 MiB were asked for at job/train.py:5 step, the card had 30 MiB left" in told
    assert "then: 40 MiB in use, 100 MiB reserved; 60 MiB lay unused, in 5 blocks of at most 12 MiB" in told
    assert "job/train.py:5 step" in told
    assert "export PYTORCH_ALLOC_CONF=expandable_segments:True    # it would have run" in told
    assert "no stacks were recorded" not in told


def test_settings_that_are_named_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    recording = str(RECORDINGS / "windows.pickle.gz")
    confs = ("expandable_segments:True", "max_split_size_mb:200")
    assert main(["explain", recording, "--json", *(part for one in confs for part in ("--alloc-conf", one))]) == 0
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert [one["settings"] for one in device["others"]] == ["", *confs]
    assert [one["reserved_bytes"] for one in device["others"]][:2] == [1810 * MIB, 1726 * MIB]
    assert device["exact"]
    assert sum(one["nbytes"] for one in device["live"]) == device["requested_bytes"]


def test_without_stacks_sizes_are_told_and_how_to_record_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(RECORDINGS / "ce-whole.pickle.gz")]) == 0
    told = capsys.readouterr().out
    assert "1,000 MiB   4        250 MiB   blocks of 250 MiB" in told
    assert "no stacks were recorded: torch.cuda.memory._record_memory_history(stacks='python') records them" in told
    assert "no setting compared here would have needed 1 % less" in told


def test_what_is_no_recording_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only_segments, text, cut = tmp_path / "segments.pickle", tmp_path / "notes.txt", tmp_path / "cut.pickle.gz"
    only_segments.write_bytes(pickle.dumps([]))
    short, json_file, saved = tmp_path / "short.pickle", tmp_path / "plan.json", tmp_path / "model.pt"
    short.write_bytes(pickle.dumps(out_of_memory())[:-100])
    number = tmp_path / "7.pickle"
    number.write_bytes(pickle.dumps(7))
    json_file.write_text('{"cells": []}')
    torch.save({"weight": torch.zeros(2)}, saved)
    text.write_text("notes")
    odd = tmp_path / "odd.yaml"
    odd.write_text("a: 1")  # which pops from pickle's empty stack
    cut.write_bytes(gzip.compress(pickle.dumps(out_of_memory()))[:100])
    for path, message in (
        (tmp_path / "absent", "absent: is neither a recording's file nor a run's folder"),
        (text, "notes.txt: snapshot: is not the pickle that torch.cuda.memory._dump_snapshot writes"),
        (odd, "odd.yaml: snapshot: is not the pickle that torch.cuda.memory._dump_snapshot writes, or is damaged"),
        (cut, "cut.pickle.gz: snapshot: ends in the middle; it was not written, or not copied, to its end"),
        (short, "short.pickle: snapshot: ends in the middle; it was not written, or not copied, to its end"),
        (json_file, "plan.json: snapshot: this is JSON; torch.cuda.memory._dump_snapshot writes a pickle"),
        (saved, "model.pt: snapshot: this is what torch.save writes, or another zip archive; torch.cuda.memory._dump"),
        (number, "7.pickle: snapshot: holds 7, and what torch.cuda.memory._dump_snapshot writes holds a mapping"),
        (only_segments, "holds no trace, only what was in use at its end; record one with torch.cuda.memory"),
    ):
        assert main(["explain", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not re.search("Error|0x", line), "Python's words"
    assert main(["explain", str(RECORDINGS / "ce-whole.pickle.gz"), "--alloc-conf", "expandable_segment:True"]) == 2
    assert "--alloc-conf expandable_segment:True: " in capsys.readouterr().err
