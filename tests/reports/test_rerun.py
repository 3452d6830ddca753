"""The command that runs a cell again: it comes to that cell, and to no other."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.reports import made
from vrambench.bench.plan.matrix import read_matrix
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.results import OWN_CODE
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports.rerun import command
from vrambench.reports.rows import Row, Run, rows_of

MATRIX, _ = read_matrix(Path(__file__).parents[2] / "matrix.yaml")
RUNS = {
    "smoke": ("vrambench run", Selection(profile="smoke"), "cpu"),
    "24gb": (
        "vrambench run --profile 24gb --budget rtx-4090 --only algorithm=sft,ppo --set lora_r=8",
        Selection(profile="24gb", budget="rtx-4090", only=("algorithm=sft,ppo",), set=("lora_r=8",)),
        "cuda",
    ),
    "swept": (
        "vrambench run --profile 24gb --sweep batch_size=1,2 --only precision=nf4 --only algorithm=sft",
        Selection(profile="24gb", sweep=("batch_size=1,2",), only=("precision=nf4", "algorithm=sft")),
        "cuda",
    ),
}


def selected(words: list[str], device: str) -> Plan:
    """What a command comes to."""
    assert words[:2] == ["vrambench", "run"]
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    one = {name[2:]: value for name, value in pairs if name in ("--profile", "--model", "--budget")}
    axes = {name[2:]: value for name, value in pairs if name[2:] in AXIS_NAMES}
    options = tuple(value for name, value in pairs if name == "--set")
    assert len(one) + len(axes) + len(options) == len(pairs), words
    return select(MATRIX, Selection(axes=axes, set=options, **one), device)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RUNS)
def test_it_comes_to_the_cell(name: str) -> None:
    typed, selection, device = RUNS[name]
    plan = select(MATRIX, selection, device)  # type: ignore[arg-type]
    info = {"command": typed, "profile": plan.profile, "matrix": "matrix.yaml"}
    planned = [{"id": one.cell.id, "name": one.name, **one.cell.flat()} for one in plan.cells]
    rows = rows_of([Run("run", {**info, "cells": planned})])
    for row in [*rows[:: max(1, len(rows) // 12)], *(row for row in rows if "=" in row.name)][:40]:
        words = shlex.split(command(row, info))
        (found,) = selected(words, device).cells
        assert found.cell.id == row.id, words


def row(**changes: object) -> Row:
    (one,) = rows_of([made.run_of([made.full("a1", **changes)])])  # type: ignore[arg-type]
    return one


def test_it_keeps_what_the_run_said_of_all_cells() -> None:
    info = {
        "command": "vrambench run mine.yaml --out /tmp/x --device predicted --only algorithm=sft --budget=8GiB --set 'lora_r=4'",
        "matrix": "mine.yaml",
        "profile": None,
        "device": "predicted",
    }
    assert command(row(), info) == (
        "vrambench run --precision bf16 --adapter lora --optimizer adamw_torch --offload none --algorithm sft "
        "mine.yaml --device predicted --budget 8GiB --set lora_r=4"
    )


@pytest.mark.parametrize("info", [{}, {"command": "vrambench run --claims all"}, {"command": None}])
def test_where_the_run_does_not_tell_it_says_every_setting(info: dict[str, object]) -> None:
    told = command(row(), info)
    assert "--set batch_size=1 " in told
    assert "--set budget=24GiB" in told


def test_a_command_with_an_open_quote_is_no_obstacle() -> None:
    assert "--algorithm sft" in command(row(), {"command": "vrambench run --set 'open", "profile": "24gb"})


def test_a_test_of_peoples_own_code_is_run_by_pytest() -> None:
    info = {"profile": OWN_CODE, "command": "pytest --vram-results runs/now tests"}
    own = Row(0, "now", "a1", "tests/test_a.py::test_fits[a b]", "ok", {"test": "tests/test_a.py::test_fits[a b]"})
    assert command(own, info) == "pytest 'tests/test_a.py::test_fits[a b]'"
