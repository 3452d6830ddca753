"""The scripts of tests/gpu on a machine without a GPU: hidden workspaces, recorded jobs, and code that only a GPU runs."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gpu_summary
import pytest

from tests import forked

GPU_TESTS = Path(__file__).resolve().parents[1] / "gpu"


# --- hidden workspaces ---


@pytest.fixture(scope="module")
def gpu_workspaces(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/workspaces.py")


def test_every_operator_of_the_table_that_jobs_use_is_measured(
    gpu_workspaces: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_workspaces.main(["--device", "cpu", "--tiny"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["operator"] for row in rows if row["error"]] == []
    assert {row["measured_bytes"] is None for row in rows} == {True}
    measured = {row["operator"] for row in rows if row["declared_bytes"] is not None}
    families = {name.rpartition(".")[0].rstrip("_") for name in measured}
    from vrambench.bench.predict.unseen.workspaces import WORKSPACES

    # One of each function stands for its like: the functions behind the table, not its names, must all be covered.
    table: dict[str, Any] = dict(WORKSPACES)
    covered = {table[name].func for name in measured if name in table}
    # The flash-attn package's stand-ins take what PyTorch's flash kernel takes, which is measured.
    package = {"flash_dense", "flash_dense_backward"}
    assert {function.func.__name__ for function in table.values()} - {one.__name__ for one in covered} == {
        "extreme",
        *package,
    }
    assert {"bitsandbytes.gemm_4bit", "bitsandbytes.int8_scaled_mm"} <= families


def test_what_is_hidden_is_what_is_no_result(gpu_workspaces: ModuleType) -> None:
    import torch

    result = torch.empty(4)
    at = result.untyped_storage().data_ptr()
    events = [
        ("alloc", at, 512),  # a buffer where the result will be
        ("alloc", 1, 100),
        ("free_requested", at, 512),
        ("free_requested", 1, 100),
        ("alloc", at, 16),
        ("alloc", 2, 300),
        ("free_requested", 2, 300),
    ]
    assert gpu_workspaces.hidden(events, (result, None)) == ([512, 100, 300], 612)


def test_the_summary_names_operators_that_hid_something_else(tmp_path: Path) -> None:
    row = {"operator": "aten.sum.default", "shapes": ["float32[4]"], "declared_peak_bytes": 4, "error": None}
    rows = [
        row | {"measured_peak_bytes": 4},
        row | {"measured_peak_bytes": 8},
        row | {"declared_peak_bytes": None, "measured_peak_bytes": 0},
        row | {"operator": "aten.mm.default", "measured_peak_bytes": None, "error": "RuntimeError: no"},
    ]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert gpu_summary.workspaces_told(tmp_path / "w.jsonl") == [
        "workspaces: 3 of 4 operators measured, 2 not as in the table",
        "  aten.sum.default float32[4]: 8 bytes, 4 in the table",
        "  aten.mm.default: RuntimeError: no",
    ]
    assert gpu_summary.workspaces_told(tmp_path / "none.jsonl") == []


# --- recorded jobs ---


@pytest.fixture(scope="module")
def gpu_replay(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/replay.py")


@pytest.mark.parametrize("tiny", [False, True])
def test_every_recorded_cell_is_valid(gpu_replay: ModuleType, tiny: bool) -> None:
    from vrambench.bench.plan.validity import check

    for case in gpu_replay.CASES:
        assert [finding.rule for finding in check(case.cell(tiny), "cuda") if finding.kind == "reject"] == [], case.name


def test_a_recording_that_the_model_made_is_repeated_and_a_changed_one_is_not(
    gpu_replay: ModuleType, tmp_path: Path
) -> None:
    from vrambench.bench.allocator import Allocator
    from vrambench.bench.allocator.snapshot import snapshot_of

    allocator = Allocator(record=True)
    handles = [allocator.malloc(size) for size in (1000, 3 * 2**20, 2000)]
    allocator.free(handles[1])
    snapshot = snapshot_of(allocator)
    row = gpu_replay.replayed(snapshot)
    assert row["exact"] is True
    assert row["recorded"] == row["predicted"]
    assert row["predicted"] == {
        "requested_bytes": 3000 + 3 * 2**20, "allocated_bytes": 1024 + 3 * 2**20 + 2048, "reserved_bytes": 22 * 2**20,
    }  # fmt: skip

    keep = tmp_path / "kept.pickle.gz"
    gpu_replay.keep_snapshot(snapshot, keep)
    assert gpu_replay.replayed(pickle.loads(gzip.decompress(keep.read_bytes()))) == row

    last = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"][-1]
    last["addr"] += 512
    block = next(one for one in snapshot["segments"][0]["blocks"] if one["requested_size"] == 2000)
    before = next(one for one in snapshot["segments"][0]["blocks"] if one["state"] == "inactive")
    assert before["address"] > block["address"]
    blocks = snapshot["segments"][0]["blocks"]
    gap = block | {"size": 512, "requested_size": 0, "state": "inactive"}
    blocks.insert(blocks.index(block), gap)
    block["address"] += 512
    before["address"] += 512
    before["size"] -= 512
    moved = gpu_replay.replayed(snapshot)
    assert moved["exact"] is False
    assert snapshot["device_traces"][0][moved["moved_entry"]] is last


def test_what_is_live_at_the_peak_is_told_apart(gpu_replay: ModuleType) -> None:
    """Names may come again; the peak is 130 bytes, after the second 100 and before what is freed next."""
    requests = [(1, 100), (2, 20), (2, 0), (1, 0), (1, 10), (3, 20), (4, 100), (4, 0), (5, 90), (3, 0)]
    assert gpu_replay.live_at_peak(requests) == {10: 1, 20: 1, 100: 1}
    assert gpu_replay.live_at_peak(requests[:2]) == {100: 1, 20: 1}, "it may be the end"
    recorded, simulated = Counter({10: 1, 20: 3, 5: 9}), Counter({10: 1, 20: 1, 7: 2})
    assert gpu_replay.apart(recorded, simulated) == {
        "recorded_only": [[5, 9], [20, 2]], "simulated_only": [[7, 2]],
    }  # fmt: skip


@pytest.mark.slow
def test_a_cell_is_recorded_in_a_process_of_its_own(gpu_replay: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu_replay.main(["--device", "cpu", "--tiny", "--only", "sft", "--seconds", "0.1"]) == 1
    row = json.loads(capfd.readouterr().out)
    assert (row["exact"], row["error"]) == (None, "not done after 0.1 s")
    assert gpu_replay.main(["--device", "cpu", "--tiny", "--only", "expandable"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert row["exact"] is True
    assert row["recorded"] == row["predicted"] == row["simulated"]
    assert row["settings"] == "expandable_segments:True"


def test_the_summary_tells_of_replays_and_accuracy(tmp_path: Path) -> None:
    sizes = {"requested_bytes": 100, "allocated_bytes": 200, "reserved_bytes": 400}
    row = {
        "cell": "sft", "exact": True, "error": None, "recorded": sizes, "simulation_error": None,
        "simulated": sizes | {"reserved_bytes": 404}, "moved_entry": None, "events": 9,
        "apart": {"recorded_only": [[33554432, 1], [512, 3]], "simulated_only": []},
    }  # fmt: skip
    bad = row | {
        "cell": "zero2",
        "exact": False,
        "moved_entry": 4,
        "simulated": None,
        "apart": None,
        "simulation_error": "KeyError: 1",
    }
    failed = row | {"cell": "ppo", "exact": None, "error": "RuntimeError: no"}
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, bad, failed)))
    assert gpu_summary.replay_told(tmp_path / "r.jsonl") == [
        "replay: 1 of 3 recorded jobs exact",
        "  sft: exact; simulated requested +0.00%, allocated +0.00%, reserved +1.00%",
        "    recorded only, at the peak: 1 x 33,554,432, 3 x 512 bytes",
        "  zero2: not exact, moved at entry 4 of 9; not simulated: KeyError: 1",
        "  ppo: RuntimeError: no",
    ]
    assert gpu_summary.replay_told(tmp_path / "none.jsonl") == []
    (tmp_path / "a.json").write_text(json.dumps({"rows": [], "results": 3}))
    assert gpu_summary.accuracy_told(tmp_path / "a.json") == [
        "accuracy: none of 3 results has both a prediction and measured memory"
    ]
    assert gpu_summary.accuracy_told(tmp_path / "none.json") == []


# --- the tests that run on the GPU alone ---


def test_the_code_that_is_run_there_in_processes_of_its_own_is_code() -> None:
    """Its strings are read by Python on a GPU only: here each is compiled at least."""
    checked = 0
    for node in ast.walk(ast.parse((GPU_TESTS / "test_meter.py").read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("\nimport torch"):
            compile(node.value.replace("BUDGET", "None"), "started", "exec")
            checked += 1
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "measured":
            (code,) = node.args
            text = code.right if isinstance(code, ast.BinOp) else code
            assert isinstance(text, ast.Constant)
            compile(text.value, "measured", "exec")
            checked += 1
    assert checked == 11, "START and the ten tests"


# --- what people's trainers take ---


@pytest.fixture(scope="module")
def gpu_trainers(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/trainers.py")


@pytest.mark.usefixtures("predicted_here")
def test_a_trainers_job_runs_beside_its_prediction(
    gpu_trainers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, where all is imported, and not in the process of its own that each job has."""
    pytest.importorskip("trl")

    def row_here(command: list[str], seconds: float) -> Any:
        row = tmp_path / "row.json"
        assert gpu_trainers.main([*command[1:], "--row", str(row)]) == 0
        return json.loads(row.read_text())

    monkeypatch.setattr(gpu_trainers, "row_from", row_here)
    assert gpu_trainers.main(["--device", "cpu", "--tiny", "--only", "TRL's defaults"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(row["seconds"]) == gpu_trainers.STEPS
    assert row["predicted"]["reserved_bytes"] > row["predicted"]["allocated_bytes"] > 0
    assert row["allocated_bytes"] is None, "nothing counts bytes on a CPU"


def test_every_cell_that_says_a_trainers_job_is_one(gpu_trainers: ModuleType) -> None:
    from vrambench.methods.cell import resolve
    from vrambench.methods.workload import AXIS_NAMES

    for job in gpu_trainers.JOBS:
        if job.axes is not None:
            axes = dict(zip(AXIS_NAMES, job.axes.split(), strict=True))
            assert resolve(axes, {"model": gpu_trainers.MODEL, **job.settings}).name.startswith(job.axes)


@pytest.mark.usefixtures("predicted_here")
def test_measured_trainers_are_predicted_anew(
    gpu_trainers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_trainers, "JOBS", (gpu_trainers.FULL, gpu_trainers.Trained("unsaid")))
    took = {"model": "tiny", "allocated_bytes": 10**6, "reserved_bytes": 10**7}
    (tmp_path / "rows").write_text(json.dumps({"job": "full", **took}) + "\n" + json.dumps({"job": "unsaid", **took}))
    assert gpu_trainers.main(["--anew", str(tmp_path / "rows")]) == 0
    full, unsaid = map(json.loads, capsys.readouterr().out.splitlines())
    assert full["error"]["allocated_bytes"] == full["predicted"]["allocated_bytes"] / 10**6 - 1
    assert (unsaid["predicted"], unsaid["error"]) == (None, None)


def test_a_trainers_job_that_is_none_is_told_by_the_script(gpu_trainers: ModuleType, tmp_path: Path) -> None:
    done = forked.run([str(gpu_trainers.__file__), "--device", "cpu", "--only", "sft"], tmp_path)
    assert done.returncode == 2
    assert "no job 'sft'; there are TRL's defaults; full;" in done.stderr
