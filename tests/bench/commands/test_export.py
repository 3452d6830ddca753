"""`vrambench export`: which cell, which file, and what is no way to name either."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.bench.allocator.made import whole_recording
from tests.reports import made
from vrambench.bench.allocator.snapshot import read_snapshot
from vrambench.bench.commands.app import main
from vrambench.bench.commands.export import found_in
from vrambench.bench.results.store import RunFolder
from vrambench.methods.errors import UnknownValue

AXES = ("--precision", "bf16", "--adapter", "none", "--optimizer", "sgd", "--offload", "none", "--algorithm", "sft")
TINY = ("--model", "tiny", "--set", "steps=1", "--set", "warmup_steps=0", "--set", "prompt_tokens=8")
NAME = "bf16 none sgd none sft"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    sweep = ("--sweep", "batch_size=1,2")
    assert main(["run", "--out", str(folder), "--device", "cpu", "--jobs", "1", *AXES, *TINY, *sweep]) == 0
    return folder


def ids(run: Path) -> dict[str, str]:
    return {one.name: one.id for one in RunFolder.open(run).results()}


def test_a_predicted_cell_is_written_for_each_viewer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, found = next(iter(ids(run).items()))
    plain, packed, traced = (tmp_path / each for each in ("cell.pickle", "cell.pickle.gz", "cell.json"))
    assert main(["export", str(run), found, "-o", str(plain)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"wrote {plain}: {name}, as it is predicted for a card of 24 GiB (")
    assert told.endswith("open it with pytorch.org/memory_viz and vrambench explain\n")
    assert main(["export", str(run), found[:8], "-o", str(packed)]) == 0
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert main(["export", str(run), name, "-o", str(traced)]) == 0, "its name says what it is"
    counters = {one["name"] for one in json.loads(traced.read_text())["traceEvents"] if one["ph"] == "C"}
    assert {"reserved", "in use", "in use: policy weights", "in use: policy gradients"} <= counters
    capsys.readouterr()
    assert main(["explain", str(plain)]) == 0
    from_file = capsys.readouterr().out
    assert "policy weights" in from_file
    assert main(["explain", str(run), found]) == 0
    of_cell = capsys.readouterr().out
    assert of_cell.startswith(f"{name}, as it is predicted for a card of 24 GiB (")
    assert of_cell.splitlines()[1:] == from_file.splitlines()[1:]
    assert main(["explain", str(run)]) == 2
    assert f"{run}: is a run's folder; name a cell of it as well: '{name}'" in capsys.readouterr().err
    assert main(["explain", str(tmp_path)]) == 2
    assert f"{tmp_path}: is a folder, and no run's (it has no run.json); name a recording" in capsys.readouterr().err
    assert main(["explain", str(plain), name]) == 2
    assert f"CELL {name}: {plain} is no run's folder" in capsys.readouterr().err


def test_a_recorded_cell_is_written_as_it_was_recorded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(ids(run).values())[1]
    recording = RunFolder.open(run).recording(found)
    recording.parent.mkdir()
    recording.write_bytes(gzip.compress(pickle.dumps(whole_recording())))
    out = tmp_path / "cell.pickle"
    assert main(["export", str(run), found, "-o", str(out)]) == 0
    assert "as it was recorded" in capsys.readouterr().out
    assert read_snapshot(out) == read_snapshot(recording)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "chrome"], "error: --format: 'chrome' is not one of snapshot, perfetto"),
        (["CELL=bf16 none sgd none dpo"], "error: CELL: 'bf16 none sgd none dpo' is not one of "),
        (["CELL="], "error: CELL: '' is not one of "),
        (["CELL=abcdef012"], "error: CELL: 'abcdef012' is not one of "),
        (["OUT=-"], "error: -o -: names no file; write one (./- if it is called so)"),
        (["OUT=."], "error: -o .: is a folder; name a file"),
        (["OUT=none/cell.pickle"], "error: -o none/cell.pickle: there is no folder none"),
        (["RUN=none"], "error: none is not a run's folder: it is not there"),
    ],
)
def test_what_cannot_be_is_said(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"RUN": str(run), "CELL": NAME, "OUT": str(tmp_path / "cell.pickle")}
    given |= dict(one.split("=", 1) for one in arguments if "=" in one)
    more = [one for one in arguments if "=" not in one]
    assert main(["export", given["RUN"], given["CELL"], "-o", given["OUT"], *more]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())


def test_of_many_cells_the_nearest_are_named_and_what_lists_all() -> None:
    cells = [
        f"bf16 lora adamw_torch none {algorithm} batch_size={size}"
        for algorithm in ("sft", "dpo")
        for size in range(1, 15)
    ]
    results = [made.result(f"{place:012x}", name=name) for place, name in enumerate(cells)]
    wanted, nearest = "bf16 lora adamw_torch none sft batch_size=15", cells[13]
    with pytest.raises(UnknownValue) as caught:
        found_in(results, wanted, Path("runs/one"))
    assert str(caught.value).startswith(
        f"CELL: '{wanted}' is unknown; did you mean '{nearest}'? Nearest are {nearest}, "
    )
    assert str(caught.value).endswith("; vrambench report runs/one --format table tells all 28")
    with pytest.raises(UnknownValue, match=r"^CELL: 'ffff0000001a' is unknown; .*0000001a") as caught:
        found_in(results, "ffff0000001a", Path("runs/one"))
    assert "lora" not in str(caught.value), "ids are asked for"


def test_a_file_is_overwritten_only_if_told_to(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    found = next(iter(ids(run).values()))
    assert main(["export", str(run), found, "-o", str(out)]) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["export", str(run), found, "-o", str(out), "--force"]) == 0
    assert read_snapshot(out).device_traces


def test_only_cuda_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--out", str(tmp_path / "r"), "--device", "cpu", "--record", *AXES, *TINY]) == 2
    assert "--record: is for runs on a GPU, and this one is on the CPU" in capsys.readouterr().err
