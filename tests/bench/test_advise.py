"""How far a field goes, and what to change so that a cell fits: checked by asking the predictor once more."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.predict.advise import advise
from vrambench.bench.predict.changes import CHANGES, changed
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.reach import Ask, integer_fields, largest, rejection
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.errors import ConfigurationError, UnknownValue

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
    assert [probe.value for probe in found.probes] == [8, 4, 2, 1]


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


def test_advice_is_valid_fits_and_comes_by_cost(predictor: Predictor) -> None:
    cell = cell_of(batch_size=4096)
    ask = asking(predictor, round(0.7 * device_bytes(predictor.forecast(cell))))
    assert not ask(cell).fits
    advice = advise(cell, 2, ask)
    assert [set(one.changes) for one in advice.suggestions] == [
        {"batch_size", "gradient_accumulation_steps"},
        {"adapter", "gradient_checkpointing"},
    ]
    for one in advice.suggestions:
        variant = changed(cell, one.changes)
        assert rejection(variant) is None
        forecast = ask(variant)
        assert forecast.fits
        assert (one.verdict, one.device_bytes) == (forecast.verdict, device_bytes(forecast))
        assert one.margin_bytes >= 0
    assert advice.ending == "2 found"


def test_what_is_tight_by_luck_is_not_advised(predictor: Predictor) -> None:
    cell = cell_of(batch_size=1024)
    halved = changed(cell, {"batch_size": 512, "gradient_accumulation_steps": 2})
    budget = device_bytes(predictor.forecast(halved)) + 2**20
    assert predictor.forecast(halved, budget).verdict == "tight"
    advice = advise(cell, 1, asking(predictor, budget), most=4)
    assert {"batch_size": 512, "gradient_accumulation_steps": 2} not in [one.changes for one in advice.suggestions]


def test_nothing_fits_where_the_context_takes_the_budget(predictor: Predictor) -> None:
    advice = advise(cell_of(), 3, asking(predictor, 64 * 2**20))
    assert (advice.suggestions, advice.predictions) == ((), 1)
    assert advice.ending == "no change that is known makes it fit"


def test_a_step_without_copies_is_advised_before_rounded_state() -> None:
    optimizers = [change.settings["optimizer"] for change in CHANGES if change.what == "optimizer"]
    assert optimizers[:2] == ["adamw_torch_fused", "adamw_bnb_8bit"]


def test_what_fits_needs_no_advice(predictor: Predictor) -> None:
    advice = advise(cell_of(), 3, asking(predictor, 2**40))
    assert advice.suggestions == ()
    assert "fits as it is" in advice.ending


def test_the_search_stops_at_its_cap_and_says_so(predictor: Predictor) -> None:
    sample = predictor.forecast(cell_of(), 2**20)
    asked: list[Cell] = []

    def never(cell: Cell) -> Forecast:
        asked.append(cell)
        return sample.model_copy(update={"roles": {}, "memory": sample.memory.model_copy(update={"context_bytes": 0})})

    advice = advise(cell_of({"algorithm": "ppo"}), 3, never, most=12)
    assert (advice.predictions, len(asked)) == (12, 12)
    assert advice.ending == "stopped at the limit of 12 predictions, with 0 of 3 found"
    assert all(rejection(cell) is None for cell in asked)
    assert len({cell.id for cell in asked}) == 12


def test_weights_that_exceed_the_budget_are_not_predicted_again(predictor: Predictor) -> None:
    cell = cell_of()
    sample = predictor.forecast(cell, 2**20)
    asked: list[Cell] = []

    def too_big(cell: Cell) -> Forecast:
        asked.append(cell)
        roles = {name: role.model_copy(update={"weights_bytes": 2**30}) for name, role in sample.roles.items()}
        return sample.model_copy(update={"roles": roles})

    advice = advise(cell, 3, too_big)
    assert advice.suggestions == ()
    bulks = [(one.precision, one.adapter, one.optimizer_value.layerwise, one.offload) for one in asked]
    assert len(bulks) == len(set(bulks)), "one prediction for each kind of weights"


def test_activations_are_offloaded_where_nothing_cheaper_does(predictor: Predictor) -> None:
    sample = predictor.forecast(cell_of(), 2**20).model_copy(update={"roles": {}})
    memory = sample.memory.model_copy(update={"context_bytes": 0})

    def offloaded_fits(cell: Cell) -> Forecast:
        verdict = "fits" if cell.workload.activation_offloading else "does not fit"
        return sample.model_copy(update={"verdict": verdict, "memory": memory})

    (advice,) = advise(cell_of(), 1, offloaded_fits).suggestions
    assert advice.changes == {"activation_offloading": True}
    assert advice.price == {"activation_offloading": "what layers save goes to the host and back in every step"}


def test_every_change_names_what_exists() -> None:
    fields = set(resolve(SFT, {}).workload.flat())
    for change in CHANGES:
        assert change.what in {*AXES, *fields}
        for name, value in change.settings.items():
            if name in AXES:
                assert value in AXES[name]
                assert value not in change.of
            else:
                assert name in fields
        assert all(value in AXES[change.what] for value in change.of)
