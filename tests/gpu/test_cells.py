"""Cells on CUDA by the command line: every axis value ends well, verified, and the same job takes the same memory
twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.allocator.explained import explain
from vrambench.bench.allocator.snapshot import read_snapshot
from vrambench.bench.results.records import Result
from vrambench.bench.results.store import RunFolder
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.optimizers import OPTIMIZERS
from vrambench.reports.page.html import write_report

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

RunMatrix = Callable[..., list[dict[str, Any]]]
OURS = [name for name in ALGORITHMS if ALGORITHMS.get(name).trains and ALGORITHMS.get(name).foreign is None]
PAGED = [name for name in OPTIMIZERS if OPTIMIZERS.get(name).paged]
LEDGER = ("requested_bytes", "allocated_bytes", "active_bytes", "reserved_bytes", "device_bytes")


def test_a_tiny_cell_of_every_axis_value_is_ok_and_verified(run_matrix: RunMatrix) -> None:
    results = run_matrix("cells.yaml")
    failed = [f"{one['name']}: {one['status']}, {one['reason']}" for one in results if one["status"] != "ok"]
    assert not failed, "\n".join(failed)
    assert {one["source"] for one in results} == {"verified"}
    for one in results:
        ledger = [one["memory"][key] for key in LEDGER]
        assert None not in ledger, one["name"]
        assert ledger == sorted(ledger), one["name"]
        assert one["memory"]["context_bytes"] > 0
        assert one["phases"], one["name"]
    paged = [one for one in results if one["cell"]["optimizer"] in PAGED]
    assert {one["cell"]["optimizer"] for one in paged} == set(PAGED)
    for one in paged:
        assert one["memory"]["managed_bytes"] > 100 * 2**20, one["name"]


def test_the_same_job_takes_the_same_memory_twice(run_matrix: RunMatrix) -> None:
    results = run_matrix("cells.yaml", "--only", "precision=bf16", "--only", "adapter=none", "--only", "optimizer=adamw_torch",
                         "--only", "offload=none", "--only", f"algorithm={','.join(OURS)}", "--repeat", "2")  # fmt: skip
    assert {one["cell"]["algorithm"] for one in results} == set(OURS)
    for one in results:
        first, second = one["samples"]
        for key in LEDGER[:4]:
            assert first["memory"][key] == second["memory"][key], f"{one['name']}: {key}"
        peaks = [[(p["name"], p["step"], p["allocated_bytes"]) for p in sample["phases"]] for sample in (first, second)]
        assert peaks[0] == peaks[1], one["name"]


def test_a_budget_that_is_too_small_is_an_out_of_memory_result(run_matrix: RunMatrix) -> None:
    results = run_matrix(
        "cells.yaml", "--only", "algorithm=sft", "--only", "precision=bf16", "--only", "optimizer=adamw_torch",
        "--only", "adapter=none", "--only", "offload=none", "--model", "llama-1b", "--budget", "4GiB",
    )  # fmt: skip
    for result in results:
        assert result["status"] == "oom", result["reason"]
        assert result["source"] == "verified"
        assert result["oom"]["where"] == "device"
        assert result["oom"]["asked_bytes"] > 0
        assert 0 < result["oom"]["missing_bytes"] <= 4 * 2**30
        assert result["memory"]["allocated_bytes"] > 2 * 2**30
        # With kernels that were loaded after the cap was set.
        assert result["memory"]["device_bytes"] <= 4 * 2**30 + 256 * 2**20
    assert results


def test_a_recorded_cell_took_the_memory_that_its_recording_shows(run_matrix: RunMatrix, tmp_path: Path) -> None:
    """The recording begins after the meter's context and ends before it: what it shows is the allocator's."""
    only = ("--only", "precision=bf16", "--only", "adapter=lora", "--only", "optimizer=adamw_torch",
            "--only", "offload=none", "--only", "algorithm=sft")  # fmt: skip
    for result in run_matrix("cells.yaml", *only, "--record"):
        (device,) = explain(read_snapshot(RunFolder.open(tmp_path / "run").recording(result["id"])))
        assert device.exact
        assert device.recorded.reserved_bytes == result["memory"]["reserved_bytes"]
        assert any("methods/" in (live.where or "") or "transformers" in (live.where or "") for live in device.live)


KEPT = ("weights", "gradients", "optimizer")
"""Kinds that addresses tell: a recording has them as its prediction does, but for the rounding of small blocks."""


def test_a_recorded_cell_says_whose_memory_it_was_beside_its_prediction(run_matrix: RunMatrix, tmp_path: Path) -> None:
    """By role and kind in each phase, and where every block lay; the page shows both."""
    one = ("--precision", "bf16", "--adapter", "lora", "--optimizer", "adamw_torch", "--offload", "none", "--algorithm", "ppo",
           "--model", "smollm2-135m", "--set", "prompt_tokens=64", "--set", "response_tokens=64")  # fmt: skip
    (file,) = run_matrix("cells.yaml", *one, "--record", "--predict")
    result = Result.model_validate(file)
    assert result.status == "ok", result.reason
    assert result.memory.reserved_bytes
    assert result.predicted_parts
    assert result.blocks, result.notes
    stretches = [stretch for segment in result.blocks.segments for stretch in segment]
    assert 0 < sum(stretch.nbytes for stretch in stretches) <= result.memory.reserved_bytes
    owned: Counter[tuple[str | None, str | None]] = Counter()
    for stretch in stretches:
        name = result.blocks.names[stretch.name]
        owned[name.role, name.kind] += stretch.nbytes
    assert owned["policy", "weights"] == pytest.approx(result.roles["policy"].weights_bytes, rel=0.02)
    phases = {(phase.name, phase.step): phase for phase in result.phases}
    for told in result.predicted_parts.phases:
        phase = phases[told.name, told.step]
        real, foretold = ({(share.role, share.kind): share.nbytes for share in one.at_peak} for one in (phase, told))
        assert sum(real.values()) == pytest.approx(phase.allocated_bytes, rel=0.05), phase
        for kind in KEPT if (told.name, told.step) == ("optimizer_step", 1) else KEPT[:1]:
            assert real["policy", kind] == pytest.approx(foretold["policy", kind], rel=0.02), (kind, phase)
    assert "policy" in {held.role for held in result.held}
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert 'id="chart-blocks"' in (tmp_path / "report.html").read_text()
