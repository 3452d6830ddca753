"""How far a field goes: checked by asking the predictor once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.fit import fit
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.reach import Ask, integer_fields, largest, rejection
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.errors import ConfigurationError, UnknownValue

ROOT = Path(__file__).parents[3]
SFT = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


def cell_of(axes: dict[str, str] | None = None, **workload: Any) -> Cell:
    fields = {"model": "tiny", "batch_size": 8, "rollout_batch": 8, "prompt_tokens": 60, "response_tokens": 4}
    return resolve(SFT | (axes or {}), fields | {"steps": 2, "lora_r": 4} | workload)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor()


def device_bytes(forecast: Forecast) -> int:
    assert forecast.memory.device_bytes is not None
    return forecast.memory.device_bytes


def asking(predictor: Predictor, budget: int) -> Ask:
    return lambda cell: predictor.forecast(cell, budget)


@pytest.mark.parametrize("own", [1, 40, 200])
def test_the_largest_value_fits_and_the_next_does_not(predictor: Predictor, own: int) -> None:
    budget = device_bytes(predictor.forecast(cell_of(batch_size=50)))
    ask = asking(predictor, budget)
    cell = cell_of(batch_size=own)
    found = largest(cell, "batch_size", ask)
    assert found.value is not None
    assert found.value >= 50
    assert ask(changed(cell, {"batch_size": found.value})).fits
    assert not ask(changed(cell, {"batch_size": found.value + 1})).fits
    assert found.bound == f"batch_size {found.value + 1} does not fit"
    assert found.device_bytes == device_bytes(ask(changed(cell, {"batch_size": found.value})))
    assert found.device_bytes <= budget
    values = [probe.value for probe in found.probes]
    assert values[0] == own
    assert len(values) == len(set(values))
    by_value = sorted(found.probes, key=lambda probe: probe.value)
    verdicts = [probe.verdict == "does not fit" for probe in by_value]
    assert verdicts == sorted(verdicts), "once it does not fit, no larger value does"


def test_nothing_fits_a_budget_below_the_context(predictor: Predictor) -> None:
    found = largest(cell_of(), "batch_size", asking(predictor, 2**20))
    assert (found.value, found.device_bytes) == (None, None)
    assert [probe.value for probe in found.probes] == [8]
    assert found.bound == "weights, optimizer state and CUDA's context alone take more than the budget"


def test_of_none_that_fits_the_bound_is_memory_not_the_rule_below(predictor: Predictor) -> None:
    cell = cell_of({"algorithm": "grpo"})
    whole = predictor.forecast(cell, 2**40)
    role = whole.roles["policy"]
    held = role.weights_bytes + role.optimizer_bytes + (whole.memory.context_bytes or 0)
    found = largest(cell, "group_size", asking(predictor, held + 2**20))
    assert (found.value, found.bound) == (None, "group_size 8 does not fit"), "1 is forbidden by a rule"


@pytest.mark.parametrize("room", [-1, 0, 3 << 20, 40 << 20])
@pytest.mark.parametrize("field", ["batch_size", "response_tokens", "max_length"])
def test_the_largest_fits_and_the_next_does_not_wherever_memory_goes_up_and_down(
    predictor: Predictor, field: str, room: int
) -> None:
    cell = cell_of({"precision": "bf16"}, prompt_tokens=200, response_tokens=300, batch_size=4)
    ask = asking(predictor, device_bytes(predictor.forecast(cell, 2**34)) + room)
    found = largest(cell, field, ask)
    fits = {probe.value: probe.verdict != "does not fit" for probe in found.probes}
    assert found.value is not None
    step = 1 if field == "batch_size" else 2 ** ((found.value // 64).bit_length() - 1) if found.value >= 128 else 1
    assert step * 64 <= found.value or step == 1
    after = found.value - found.value % step + step
    assert (fits[found.value], fits[after]) == (True, False)
    assert len(found.probes) <= 13


@pytest.mark.parametrize("own", [1, 3, 40])
@pytest.mark.parametrize("given_back", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("power", [1, 2])
def test_few_predictions_are_made_however_much_is_given_back(power: int, given_back: float, own: int) -> None:
    """In use is what grows by the batch or its square, reserved a half more; of that half a part is given back at the budget."""
    sample = Predictor().forecast(cell_of(), 2**40)
    held = sum(role.weights_bytes + role.optimizer_bytes for role in sample.roles.values())
    context, budget = sample.memory.context_bytes or 0, 24 * 2**30

    def ask(cell: Cell) -> Forecast:
        work = cell.workload.batch_size**power * (2**28 if power == 1 else 2**24)
        least = held + context + work * (1.5 - given_back / 2)
        return sample.model_copy(
            update={
                "verdict": "fits" if least <= budget else "does not fit",
                "unlimited_bytes": held + context + work * 3 // 2,
                "memory": sample.memory.model_copy(update={"active_bytes": held + work, "device_bytes": budget}),
                "margin_bytes": 0,
            }
        )

    cell = cell_of(batch_size=own)
    found = largest(cell, "batch_size", ask)
    assert found.value is not None
    assert ask(changed(cell, {"batch_size": found.value})).fits
    assert not ask(changed(cell, {"batch_size": found.value + 1})).fits
    assert len(found.probes) <= 10


@pytest.mark.slow
def test_the_readmes_example_takes_few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = dict(zip(AXES, ("nf4", "lora", "adamw_torch", "none", "ppo"), strict=True))
    plan = select(load_matrix(ROOT / "matrix.yaml"), Selection(profile="24gb", axes=axes, budget="rtx-4090"), "cuda")
    predicted: list[str] = []
    for_batch_size: list[str] = []
    forecast = Predictor.forecast

    def counted(self: Predictor, one: Cell, **how: Any) -> Forecast:
        predicted.append(one.id)
        return forecast(self, one, **how)

    def tell(line: str) -> None:
        if line.startswith("batch_size "):
            for_batch_size[:] = predicted

    monkeypatch.setattr(Predictor, "forecast", counted)
    answer = fit(plan.cells[0].cell, CARDS["rtx-4090"], maximum="batch_size,response_tokens", tell=tell)
    assert answer.max[0].value == 12
    assert 1 < len(for_batch_size) <= 6
    assert len(predicted) == len(set(predicted)) <= 8


def test_a_length_is_told_to_a_64th() -> None:
    def ask(cell: Cell) -> Forecast:
        verdict = "fits" if (cell.workload.max_length or 0) <= 1500 else "does not fit"
        return sample.model_copy(update={"verdict": verdict})

    sample = Predictor().forecast(cell_of())
    found = largest(cell_of(batch_size=1), "max_length", ask)
    assert (found.value, found.bound) == (1488, "max_length 1504 does not fit")


def test_a_rule_is_a_bound(predictor: Predictor) -> None:
    cell = cell_of(batch_size=1)
    for field, value in (("prompt_tokens", 2048 - 4), ("max_length", 2048)):
        found = largest(cell, field, asking(predictor, 2**40))
        assert found.value == value
        assert found.bound.startswith("too-long: ")
        assert rejection(changed(cell, {field: value})) is None
        assert rejection(changed(cell, {field: value + 1})) is not None


def test_a_rollout_stays_a_whole_number_of_optimizer_steps(predictor: Predictor) -> None:
    def ask(cell: Cell) -> Forecast:
        assert rejection(cell) is None
        sample = predictor.forecast(cell_of())
        return sample.model_copy(update={"verdict": "fits" if cell.workload.batch_size <= 5 else "does not fit"})

    cell = cell_of({"algorithm": "ppo"}, batch_size=2, rollout_batch=12, gradient_accumulation_steps=3)
    found = largest(cell, "batch_size", ask)
    assert (found.value, found.along) == (5, {"rollout_batch": 30})

    def by_rollout(cell: Cell) -> Forecast:
        assert rejection(cell) is None
        sample = predictor.forecast(cell_of())
        return sample.model_copy(update={"verdict": "fits" if cell.workload.rollout_batch <= 31 else "does not fit"})  # type: ignore[operator]

    assert largest(cell, "rollout_batch", by_rollout).value == 30


def test_the_largest_group_makes_whole_optimizer_steps(predictor: Predictor) -> None:
    def ask(cell: Cell) -> Forecast:
        assert rejection(cell) is None
        sample = predictor.forecast(cell_of())
        return sample.model_copy(update={"verdict": "fits" if cell.workload.group_size <= 29 else "does not fit"})  # type: ignore[operator]

    work = {"batch_size": 2, "gradient_accumulation_steps": 4, "rollout_batch": 2}
    assert largest(cell_of({"algorithm": "grpo"}, **work), "group_size", ask).value == 28


def test_fields_that_cannot_be_searched_are_named() -> None:
    def never(cell: Cell) -> Forecast:
        raise AssertionError

    with pytest.raises(UnknownValue, match=r"--max: 'batchsize' is not one of .*; did you mean 'batch_size'"):
        largest(cell_of(), "batchsize", never)
    with pytest.raises(ConfigurationError, match="--max seed: memory does not depend on it; take one of batch_size"):
        largest(cell_of(), "seed", never)
    assert integer_fields(cell_of()) == (
        "batch_size",
        "prompt_tokens",
        "response_tokens",
        "max_length",
        "gradient_accumulation_steps",
    )
    lora = integer_fields(cell_of({"adapter": "lora", "algorithm": "ppo"}))
    assert {"lora_r", "rollout_batch"} <= set(lora)
    assert "lora_alpha" not in lora
