"""A cell with other settings is the cell that these settings, and what was left open, resolve to."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.reach import largest
from vrambench.methods.cell import Cell, resolve

AXES = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none"}


def cell_of(algorithm: str, axes: dict[str, str] | None = None, **workload: Any) -> Cell:
    return resolve(AXES | {"algorithm": algorithm} | (axes or {}), workload)


@pytest.mark.parametrize(
    ("algorithm", "without", "with_one"),
    [
        ("grpo", {"grpo.beta": 0.0}, {"grpo.beta": 0.04}),
        ("rloo", {"rloo.beta": 0.0}, {"rloo.beta": 0.05}),
        ("dpo", {"dpo.loss_type": "simpo"}, {"dpo.loss_type": "sigmoid"}),
        ("dpo", {"dpo.loss_type": "orpo"}, {"dpo.loss_type": "ipo"}),
    ],
)
@pytest.mark.parametrize(("adapter", "held"), [("lora", "adapter_off"), ("none", "copy")])
def test_a_reference_comes_and_goes_with_the_option_that_uses_it(
    algorithm: str, without: dict[str, Any], with_one: dict[str, Any], adapter: str, held: str
) -> None:
    cell = cell_of(algorithm, {"adapter": adapter})
    for settings, reference in ((without, "none"), (with_one, held), (without, "none")):
        cell = changed(cell, settings)
        assert cell.workload.reference == reference
    assert changed(cell, {"adapter": "dora"} | with_one).workload.reference == "adapter_off"


def test_a_reference_that_was_asked_for_stays() -> None:
    copied = cell_of("grpo", reference="copy", grpo={"beta": 0.04})
    assert changed(copied, {"grpo.beta": 0.1, "batch_size": 2}).workload.reference == "copy"
    none = cell_of("ppo", reference="none")
    assert changed(none, {"adapter": "none"}).workload.reference == "none"


CHANGED: list[tuple[Cell, dict[str, Any], dict[str, Any]]] = [
    (cell_of("sft", {"precision": "nf4"}), {"compute_dtype": "fp32"}, {"attention": "efficient"}),
    (cell_of("sft", {"precision": "nf4"}, compute_dtype="fp32"), {"autocast": "bf16"}, {"attention": "flash"}),
    (cell_of("sft"), {"precision": "fp32"}, {"attention": "efficient"}),
    (cell_of("sft", attention="math"), {"precision": "fp32"}, {"attention": "math"}),
    (cell_of("dpo"), {"adapter": "none", "reference_dtype": "fp32"}, {"attention": "sdpa", "reference": "copy"}),
    (cell_of("grpo"), {"algorithm": "rloo"}, {"group_size": 2}),
    (cell_of("grpo", group_size=6), {"algorithm": "rloo"}, {"group_size": 6}),
    (cell_of("grpo", {"adapter": "none"}), {"algorithm": "dpo"}, {"reference": "copy", "group_size": None}),
    (cell_of("ppo", learning_rate=0.5), {"algorithm": "sft"}, {"learning_rate": 0.5}),
    (
        cell_of("sft"),
        {"lengths": {600: 0.5, 900: 0.5}},
        {"max_length": 900, "lengths": {600: 0.5, 900: 0.5}, "attention": "sdpa"},
    ),
    (cell_of("sft", lengths={60: 0.5, 90: 0.5}), {"lengths": {100: 1.0}}, {"max_length": 100}),
    (cell_of("sft", lengths={60: 0.5, 90: 0.5}), {"lengths": None}, {"max_length": 90, "attention": "flash"}),
    (cell_of("sft", prompt_tokens=8, max_length=64), {"response_tokens": 4}, {"max_length": 12}),
    (cell_of("sft", prompt_tokens=8, max_length=64), {"max_length": 6}, {"prompt_tokens": 5, "response_tokens": 1}),
]


@pytest.mark.parametrize(("cell", "settings", "found"), CHANGED, ids=[f"{one.name} {said}" for one, said, _ in CHANGED])
def test_what_was_decided_is_decided_anew(cell: Cell, settings: dict[str, Any], found: dict[str, Any]) -> None:
    workload = changed(cell, settings).workload
    assert {name: getattr(workload, name) for name in found} == found


def test_nothing_changed_is_the_same_cell() -> None:
    for cell, _, _ in CHANGED:
        assert changed(cell, {}) == cell


def test_sequences_that_a_shorter_length_cut_are_whole_again_with_a_longer_one() -> None:
    said = {"lengths": {16: 0.5, 96: 0.5}, "max_length": 32}
    cell = cell_of("sft", model="tiny", batch_size=1, **said)
    longer = changed(cell, {"max_length": 64}, said=said)
    assert longer.workload.lengths == {16: 0.5, 64: 0.5}
    found = largest(cell, "max_length", Predictor().forecast, said=said)
    assert (found.value, found.bound) == (96, "no sequence has more than 96 tokens")
