"""The shortest command that comes to a cell again: it does, and no word of it can go."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.plan.matrix import read_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.shortest import shortest
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.workload import AXIS_NAMES

ROOT = Path(__file__).parents[3]
MATRIX, _ = read_matrix(ROOT / "matrix.yaml")
QLORA = ("nf4", "lora", "paged_adamw_8bit", "none", "sft")


def cell(*axes: str, **settings: Any) -> Cell:
    return resolve(dict(zip(AXIS_NAMES, axes, strict=True)), settings)


def of(words: tuple[str, ...]) -> Cell:
    """The cell that the options come to."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    axes = {name[2:]: value for name, value in pairs if name[2:] in AXIS_NAMES}
    more = {name[2:]: value for name, value in pairs if name in ("--model", "--budget")}
    options = tuple(value for name, value in pairs if name == "--set")
    (planned,) = select(MATRIX, Selection(axes=axes, set=options, **more), "cuda").cells
    return planned.cell


CELLS = {
    "the profile's own": (select(MATRIX, Selection(axes=dict(zip(AXIS_NAMES, QLORA, strict=True))), "cuda").cells[0].cell, 0),
    "a card and a length": (cell(*QLORA, model="mistral-7b", budget="rtx-4090", max_length=2048), None),
    "options and lists": (
        cell("bf16", "lora", "adamw_torch", "none", "grpo", model="qwen2.5-7b", budget="24GiB", group_size=4,
             lora_target_modules=["q_proj", "v_proj"], grpo={"beta": 0.04}), None),
    "what a matrix leaves no choice of": (cell("bf16", "none", "galore_adamw_layerwise", "none", "sft", max_grad_norm=0), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_it_comes_to_the_cell_and_nothing_can_be_left_out(name: str) -> None:
    wanted, settings = CELLS[name]
    words = shortest(wanted, MATRIX)
    assert of(words).id == wanted.id
    said = len(words) // 2 - len(AXIS_NAMES)
    assert settings is None or said == settings
    for place in range(2 * len(AXIS_NAMES), len(words), 2):
        assert of(words[:place] + words[place + 2 :]).id != wanted.id, words[place + 1]


def test_fit_tells_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    typed = ["fit", "--precision", "bf16", "--adapter", "lora", "--optimizer", "adamw_torch", "--offload", "none"]
    typed += ["--algorithm", "sft", "--model", "gpt2", "--set", "max_length=64", "--set", "steps=4", "--json"]
    assert main(typed) == 0
    told = json.loads(capsys.readouterr().out)
    words = shlex.split(told["command"])
    assert words[:2] == ["vrambench", "fit"]
    assert main([*words[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["cell"] == told["cell"]
    assert again["command"] == told["command"]
    assert "--budget" not in words  # the matrix says it
