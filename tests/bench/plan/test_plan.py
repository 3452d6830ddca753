"""From a matrix and selectors to cells: which ones, with which settings, under which names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.matrix import Matrix, load_matrix
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.presets import PRESETS

Make = Callable[..., Plan]


def names(plan: Plan) -> list[str]:
    return [planned.name for planned in plan.cells]


def test_every_combination_in_order_valid_or_not(small: Make) -> None:
    plan = small()
    assert names(plan)[:3] == [
        "fp32 none adamw_torch none sft",
        "fp32 none adamw_torch none ppo",
        "fp32 lora adamw_torch none sft",
    ]
    assert plan.counts == {"cells": 12, "valid": 10, "invalid": 2, "warned": 2}
    invalid = [planned for planned in plan.cells if planned.verdict == "invalid"]
    assert [planned.rejection.rule for planned in invalid if planned.rejection] == ["quantized-full"] * 2


class TestPrecedence:
    MORE = """
include: [{algorithm: ppo, seed: 3}]
sweep: {seed: [1, 2]}
profiles:
  p: {workload: {steps: 5}}
"""

    def test_profile_beats_top(self, small: Make) -> None:
        assert {planned.cell.workload.steps for planned in small(self.MORE, profile="p").cells} == {5}

    def test_include_beats_sweep(self, small: Make) -> None:
        seeds = {(planned.cell.algorithm, planned.cell.workload.seed) for planned in small(self.MORE).cells}
        assert seeds == {("sft", 1), ("sft", 2), ("ppo", 3)}

    def test_set_beats_include_and_the_files_sweep(self, small: Make) -> None:
        plan = small(self.MORE, set=("seed=9",))
        assert {planned.cell.workload.seed for planned in plan.cells} == {9}
        assert len(plan.cells) == 12

    def test_sweep_beats_include(self, small: Make) -> None:
        plan = small(self.MORE, sweep=("seed=7,8",), only=("algorithm=ppo",))
        assert [planned.cell.workload.seed for planned in plan.cells] == [7] * 6 + [8] * 6

    def test_one_option_leaves_its_neighbours(self, small: Make) -> None:
        plan = small(set=("ppo.lam=0.5",), only=("algorithm=ppo",))
        options = plan.cells[0].cell.workload.options["ppo"]
        assert (options["lam"], options["epochs"]) == (0.5, 2)


def test_every_shipped_profile_makes_cells_with_unique_names(shipped: Matrix) -> None:
    for profile, device in product(shipped.profiles, ("cpu", "cuda")):
        plan = select(shipped, Selection(profile=profile), device)  # type: ignore[arg-type]
        assert plan.counts["valid"] > 0
        assert len(set(names(plan))) == len(names(plan))
        assert len({planned.id for planned in plan.cells}) == len(plan.cells)
        assert {planned.cell.workload.model for planned in plan.cells} <= set(PRESETS)


def test_smoke_runs_all_that_a_cpu_can(shipped: Matrix) -> None:
    plan = select(shipped, Selection(profile="smoke"), "cpu")
    valid = [planned.cell for planned in plan.cells if planned.verdict == "valid"]
    assert len(valid) >= 60
    for axis, registry in AXES.items():
        able = {name for name, value in registry.values().items() if not value.cuda_only}
        assert {getattr(cell, axis).removesuffix("_layerwise") for cell in valid} == able


def test_smoke_learns_with_each_algorithm_over_three_seeds(shipped: Matrix) -> None:
    plan = select(shipped, Selection(profile="smoke"), "cpu")
    cells = [planned.cell for planned in plan.cells]
    learning = [cell for cell in cells if cell.workload.steps >= 12 and cell.workload.data == "synthetic"]
    assert {cell.precision for cell in learning} == {"fp32"}
    algorithms = ALGORITHMS.values().items()
    for algorithm in (name for name, value in algorithms if value.trains and value.foreign is None):
        seeds = {cell.workload.seed for cell in learning if cell.algorithm == algorithm}
        assert seeds == {0, 1, 2}


def test_the_twenty_billion_profile_is_the_claims(shipped: Matrix) -> None:
    plan = select(shipped, Selection(profile="20b"), "cuda")
    assert {planned.verdict for planned in plan.cells} == {"valid"}
    cell = plan.cells[0].cell
    assert (cell.precision, cell.adapter, cell.algorithm) == ("int8", "lora", "ppo")
    assert (cell.workload.model, cell.workload.reference, cell.workload.lora_r) == ("gpt-neox-20b", "adapter_off", 16)
    assert cell.workload.lora_target_modules == ("query_key_value",)
    assert len({planned.cell.workload.response_tokens for planned in plan.cells}) == len(plan.cells) > 3


def test_the_document_is_complete(small: Make) -> None:
    document = small(only=("precision=nf4", "adapter=none", "algorithm=sft")).document()
    (row,) = document["cells"]
    assert document["counts"] == {"cells": 1, "valid": 0, "invalid": 1, "warned": 0}
    assert row["verdict"] == "invalid"
    assert row["findings"][0]["rule"] == "quantized-full"
    assert row["cell"]["precision"] == "nf4"
    assert len(row["id"]) == 12


def test_a_device_without_bf16_rejects_it(shipped: Matrix) -> None:
    plan = select(shipped, Selection(profile="24gb"), "cuda", bf16=False)
    assert "bf16" not in {planned.cell.precision for planned in plan.cells if planned.verdict == "valid"}


def test_a_card_that_is_not_here_is_the_one_whose_memory_a_cells_budget_is(shipped: Matrix) -> None:
    """Of several budgets each; a CPU has what it has."""
    axes = {"adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    selection = Selection(axes=axes | {"precision": "bf16,fp16"}, sweep=("budget=t4,rtx-4090",))
    cuda, cpu = select(shipped, selection, "cuda").cells, select(shipped, selection, "cpu").cells
    assert {(one.cell.precision, one.name.rpartition("=")[2]): one.verdict for one in cuda} == {
        ("bf16", "t4"): "invalid",
        ("bf16", "rtx-4090"): "valid",
        ("fp16", "t4"): "valid",
        ("fp16", "rtx-4090"): "valid",
    }
    assert [one.cell.workload.attention for one in cuda] == ["efficient", "efficient", "flash", "flash"]
    assert {(one.verdict, one.cell.workload.attention) for one in cpu} == {("valid", "flash")}


# -- all axes by name

FULL = {"precision": "fp32", "adapter": "none", "offload": "none", "optimizer": "adamw_torch"}


@pytest.mark.parametrize("algorithm", list(AXES["algorithm"]))
def test_five_axes_by_name_are_one_cell_of_the_shipped_matrix(shipped: Matrix, algorithm: str) -> None:
    """Smoke's exclude removes it, and its include has it several times, with settings of their own."""
    (planned,) = select(shipped, Selection(axes={**FULL, "algorithm": algorithm}), "cpu").cells
    assert planned.name == f"fp32 none adamw_torch none {algorithm}"
    work = planned.cell.workload
    assert (work.steps, work.batch_size, work.gradient_checkpointing, work.seed) == (3, 4, False, 0)


def test_several_values_of_five_axes_are_every_combination(shipped: Matrix) -> None:
    axes = {**FULL, "precision": "fp32,bf16,int8", "optimizer": "adamw_torch,galore_adamw", "algorithm": "sft,ppo"}
    plan = select(shipped, Selection(axes=axes), "cpu")
    assert (len(plan.cells), plan.coverage) == (12, "full")
    assert len(select(shipped, Selection(axes=axes, coverage="pairwise"), "cpu").cells) < 12
    swept = select(shipped, Selection(axes={**FULL, "algorithm": "sft"}, sweep=("seed=0,1",)), "cpu")
    assert [planned.cell.workload.seed for planned in swept.cells] == [0, 1]


def test_include_still_adds_fields_to_what_was_named(shipped: Matrix) -> None:
    axes = {**FULL, "optimizer": "galore_adamw_layerwise", "algorithm": "sft"}
    (planned,) = select(shipped, Selection(axes=axes), "cpu").cells
    assert (planned.cell.workload.max_grad_norm, planned.verdict) == (0, "valid")


def test_four_axes_by_name_leave_the_matrix_its_exclude_and_include(shipped: Matrix) -> None:
    plan = select(shipped, Selection(axes=FULL), "cpu")
    assert {planned.cell.workload.seed for planned in plan.cells} == {0, 1, 2}


# -- what a user's own names stand for

OWN = {
    "good": "def score(prompts, responses): ...",
    "raises": "raise KeyError('user bug')",
    "leaves": "import sys; sys.exit(3)",
    "lines": "raise ValueError('one\\ntwo')",
}


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("own_raises:score", "'own_raises:score' cannot be imported: KeyError: 'user bug'"),
        ("own_leaves:score", "'own_leaves:score' cannot be imported: SystemExit: 3"),
        ("own_lines:score", "'own_lines:score' cannot be imported: ValueError: one"),
        ("own_good:scor", "'own_good:scor': there is no 'scor'; did you mean 'score'?"),
    ],
)
def test_a_users_reward_is_looked_up_when_it_is_planned(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str, said: str
) -> None:
    for name, text in OWN.items():
        (tmp_path / f"own_{name}.py").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(ConfigurationError) as error:
        small(set=(f"reward={reward}",))
    assert str(error.value) == f"--set reward={reward}: reward: {said}"
    (tmp_path / "own_data.txt").write_text("text")
    plan = small(set=("reward=own_good:score", "data=own_data.txt"))
    assert {planned.cell.workload.reward for planned in plan.cells} == {None, "own_good:score"}


def test_ctrl_c_while_a_users_module_is_imported_is_no_mistake_of_it(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        small(set=("reward=own_interrupted:score",))


@pytest.mark.parametrize("model", ["./missing", "/missing/model", "~/missing", "a/b/missing"])
def test_a_folder_that_is_not_there_is_no_model(small: Make, model: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^--model {model}: model: '{model}' "):
        small(model=model)


def test_auto_is_the_attention_kernel_that_the_card_has(shipped: Matrix) -> None:
    """Flash attention and bf16 arithmetic both came with compute capability 8.0."""
    axes = {"precision": "fp16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    for bf16, kernel in ((True, "flash"), (False, "efficient")):
        (planned,) = select(shipped, Selection(axes=axes), "cuda", bf16=bf16).cells
        assert planned.cell.workload.attention == kernel
        assert planned.verdict == "valid"


SAVING = """
axes: {precision: [fp32], adapter: [none], optimizer: [adamw_torch], offload: [none], algorithm: [sft]}
workload: {save: model}
include:
  - {precision: fp32, save_as: base}
  - {precision: bf16, adapter: none, optimizer: adamw_torch, offload: none, algorithm: sft, save: none, WEIGHTS}
"""


def test_what_cells_start_from_is_saved_by_one(tmp_path: Path) -> None:
    def planned(weights: str, **selectors: Any) -> Plan:
        (tmp_path / "matrix.yaml").write_text(SAVING.replace("WEIGHTS", f'weights: "{weights}"'))
        return select(load_matrix(tmp_path / "matrix.yaml"), Selection(**selectors), "cpu")

    assert [one.cell.workload.starts_from for one in planned("saved:base").cells] == [(), ("base",)]
    with pytest.raises(ConfigurationError, match=r"weights: no cell is saved as 'bas'; did you mean 'base'\?"):
        planned("saved:bas")
    assert len(planned("saved:base", only=("precision=bf16",)).cells) == 1, "it may have been saved before"
    with pytest.raises(ConfigurationError, match="save_as: 2 cells would be saved as 'base'"):
        planned("saved:base", sweep=("seed=0,1",))
