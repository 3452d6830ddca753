"""The cells that `make gpu` would run: they span all axes and are valid, and what was run stays as it was."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import PlannedCell, select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.axes import AXES

GPU_TESTS = Path(__file__).resolve().parents[1] / "gpu"
RESULTS = GPU_TESTS.parents[1] / "results"


@functools.cache
def cells_of(name: str) -> tuple[PlannedCell, ...]:
    """What the matrix of that name holds, on CUDA."""
    return select(load_matrix(GPU_TESTS / f"{name}.yaml"), Selection(), "cuda", bf16=True).cells


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("cells",), id="tiny"),
        pytest.param(("quarter", "recipes", "values", "optimizers"), id="quarters of an hour"),
        pytest.param(("measured", "recipes", "values", "optimizers"), id="whole"),
    ],
)
def test_every_axis_value_has_a_cell_on_the_gpu_and_no_rule_forbids_one(names: tuple[str, ...]) -> None:
    cells = [cell for name in names for cell in cells_of(name)]
    assert {cell.verdict for cell in cells} == {"valid"}
    for axis, registry in AXES.items():
        assert set(registry) - {cell.cell.axes[axis] for cell in cells} == set(), axis


@pytest.mark.parametrize(("name", "folder"), [("quarter", "nvidia-h200/measured"), ("recipes", "nvidia-h100/recipes")])
def test_a_quarter_of_an_hour_stays_as_it_was_run(name: str, folder: str) -> None:
    measured = [json.loads(file.read_text()) for file in (RESULTS / folder / "cells").glob("*.json")]
    planned = {(cell.cell.workload.model, cell.name) for cell in cells_of(name)}
    assert planned == {(result["cell"]["model"], result["name"]) for result in measured}


def test_the_measured_matrix_is_valid_as_a_whole() -> None:
    cells = cells_of("measured")
    assert {cell.verdict for cell in cells} == {"valid"}
    models = {cell.cell.workload.model for cell in cells}
    assert models == {"gpt2", "llama-1b", "llama-3.2-3b", "llama-2-7b", "gpt-neox-20b"}
    assert len(cells) >= 60


def test_the_claims_are_held_to_24_gib_and_five_jobs_run_three_times() -> None:
    claims = cells_of("claims")
    assert {cell.verdict for cell in claims} == {"valid"}
    assert {cell.cell.workload.budget for cell in claims} == {24 * 2**30}
    assert {"ppo", "remax", "sft"} == {cell.cell.algorithm for cell in claims}
    repeated = select(load_matrix(GPU_TESTS / "repeat.yaml"), Selection(), "cuda", bf16=True)
    assert [cell.verdict for cell in repeated.cells] == ["valid"] * 5
    assert repeated.repeat == 3
