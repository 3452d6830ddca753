"""How far a field goes, and what to change so that a cell fits: checked by asking the predictor once more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from vrambench.bench.commands.shared import default_matrix
from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.traits import packs_experts
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.advise import advise
from vrambench.bench.predict.changes import CHANGES, applies, changed
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.reach import Ask, integer_fields, largest, rejection
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, option_namespaces, resolve
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.models.losses import LOSSES

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


def test_of_none_that_fits_the_bound_is_memory_not_the_rule_below(predictor: Predictor) -> None:
    found = largest(cell_of({"algorithm": "grpo"}), "group_size", asking(predictor, 2**20))
    assert (found.value, found.bound) == (None, f"group_size {min(one.value for one in found.probes)} does not fit")


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


def test_responses_of_a_group_may_be_generated_a_few_at_a_time(predictor: Predictor) -> None:
    sample = predictor.forecast(cell_of())

    def ask(cell: Cell) -> Forecast:
        assert rejection(cell) is None
        few = (cell.workload.micro_rollout_batch_size or 128) <= 32
        return sample.model_copy(update={"verdict": "fits" if few else "does not fit"})

    work = {
        "batch_size": 1,
        "rollout_batch": 2,
        "group_size": 64,
        "gradient_checkpointing": True,
        "loss": "chunked_nll",
    }
    (found,) = advise(cell_of({"algorithm": "grpo", "adapter": "lora"}, **work), 1, ask).suggestions
    assert found.changes == {"micro_rollout_batch_size": 32}
    assert not [one for one in CHANGES if one.what == "micro_rollout_batch_size" and applies(one, cell_of())]


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
        {"loss", "gradient_checkpointing"},
    ]
    for one in advice.suggestions:
        variant = changed(cell, one.changes)
        assert rejection(variant) is None
        forecast = ask(variant)
        assert forecast.fits
        assert (one.verdict, one.device_bytes) == (forecast.verdict, device_bytes(forecast))
        assert one.margin_bytes >= 0
    assert advice.ending == "2 found"


def asked_for(cell: Cell, ask: Ask, said: dict[str, Any] | None = None, most: int = 40) -> list[Cell]:
    """What the search asks for where nothing fits."""
    asked: list[Cell] = []
    sample = Predictor().forecast(cell_of(), 2**20)

    def never(one: Cell) -> Forecast:
        asked.append(one)
        ask(one)
        return sample.model_copy(update={"roles": {}, "memory": sample.memory.model_copy(update={"context_bytes": 0})})

    assert advise(cell, 3, never, said=said, most=most).suggestions == ()
    return asked


def test_logits_in_chunks_are_advised_first_where_they_are_what_is_large(predictor: Predictor) -> None:
    cell = cell_of(
        {"adapter": "lora"}, model="llama-3.2-1b", prompt_tokens=1000, loss="nll", gradient_checkpointing=True
    )
    first, *_ = advise(cell, 1, asking(predictor, round(0.8 * device_bytes(predictor.forecast(cell))))).suggestions
    assert first.changes == {"loss": "chunked_nll"}
    assert "a chunk at a time" in first.price["loss"]
    kernels = asked_for(cell_of(loss="liger"), lambda one: None)  # type: ignore[arg-type,return-value]
    assert {one.workload.loss for one in kernels} == {"liger"}, "it makes no logits already"


def test_a_change_takes_what_the_matrix_says_of_fields_that_the_cell_does_not_use() -> None:
    selection = Selection(profile="24gb", only=(*(f"{axis}={value}" for axis, value in SFT.items()),))
    (planned,) = select(load_matrix(default_matrix()), selection, "cuda").cells
    assert planned.cell.workload.lora_target_modules is None
    changed_with = changed(planned.cell, {"adapter": "lora"}, said=planned.said)
    assert changed_with.workload.lora_target_modules == "all-linear"
    assert changed(planned.cell, {"adapter": "lora"}).workload.lora_target_modules == "auto"
    said = {"lora_target_modules": "all-linear", "nf4": {"double_quant": True}, "lora_r": 8}
    asked = asked_for(cell_of(), lambda one: None, said)  # type: ignore[arg-type,return-value]
    adapted = [one.workload for one in asked if one.adapter == "lora"]
    assert {(one.lora_target_modules, one.lora_r) for one in adapted} == {("all-linear", 8)}
    nf4 = changed(cell_of(), {"precision": "nf4", "adapter": "lora"}, said=said)
    assert nf4.workload.options["nf4"] == {"double_quant": True, "quantize_moe_experts": False}


def test_packed_experts_are_advised_where_there_are_any(predictor: Predictor, tmp_path: Path) -> None:
    config = {"intermediate_size": 2048, "hidden_size": 1024, "num_hidden_layers": 8, "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(tiny("mixtral") | config))
    qlora = {"precision": "nf4", "adapter": "lora"}
    said = {"lora_target_modules": "all-linear", "gradient_checkpointing": True, "loss": "chunked_nll"}
    cell = cell_of(qlora, model=str(tmp_path), batch_size=1, **said)
    budget = round(0.8 * device_bytes(predictor.forecast(cell)))
    first, *_ = advise(cell, 1, asking(predictor, budget)).suggestions
    assert first.changes == {
        "nf4.quantize_moe_experts": True,
        "lora_target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
    }
    variant = changed(cell, first.changes)
    assert predictor.forecast(variant, budget).verdict == first.verdict
    for name, model in (("nf4", "tiny"), ("int8", str(tmp_path))):
        cell = cell_of({"precision": name, "adapter": "lora"}, model=model)
        others = asked_for(cell, lambda one: None, most=80)  # type: ignore[arg-type,return-value]
        assert any(packs_experts(one) for one in others) == (name == "int8"), "with int8, once it is nf4"
        assert all(one.precision == "nf4" for one in others if packs_experts(one))


def test_what_cannot_be_run_is_passed_over() -> None:
    def cannot(cell: Cell) -> Forecast:
        if cell.workload.gradient_checkpointing:
            raise NotPredicted("the simulated job ends in RuntimeError")
        if cell.workload.loss == "chunked_nll":
            raise ConfigurationError("loss: no")
        return Predictor().forecast(cell_of(), 2**20)

    assert len(asked_for(cell_of(), cannot, most=12)) == 12


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
    assert re.fullmatch(
        r"no change that is known makes it fit; weights, gradients that are there together and what is outside the allocator "
        r"take 0\.\d\d GiB at least, of 0\.06 GiB",
        advice.ending,
    )


def test_where_nothing_fits_the_nearest_and_what_it_lacks_are_told(predictor: Predictor) -> None:
    cell = cell_of(batch_size=1024)
    whole = predictor.forecast(cell, 2**40)
    held = sum(role.weights_bytes + role.gradients_bytes for role in whole.roles.values())
    budget = (whole.memory.context_bytes or 0) + held + 2**20
    asked: dict[str, Forecast] = {}

    def ask(cell: Cell) -> Forecast:
        return asked.setdefault(cell.id, predictor.forecast(cell, budget))

    advice = advise(cell, 3, ask, most=6)
    assert advice.suggestions == ()
    own, *others = asked.values()
    nearest = max(others, key=lambda forecast: forecast.margin_bytes)
    assert nearest.margin_bytes > own.margin_bytes
    assert re.search(
        rf"; nearest is .+: {-nearest.margin_bytes / 2**30:.2f} GiB too much; largest in it: ", advice.ending
    )


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
    assert advice.ending.startswith("stopped at the limit of 12 predictions, with 0 of 3 found; nearest is ")
    assert all(rejection(cell) is None for cell in asked)
    assert len({cell.id for cell in asked}) == 12


def test_a_quick_no_is_enough_and_what_is_given_was_asked_whole(predictor: Predictor) -> None:
    sample = predictor.forecast(cell_of(), 2**20).model_copy(update={"roles": {}})
    sample = sample.model_copy(update={"memory": sample.memory.model_copy(update={"context_bytes": 0})})
    whole: list[Cell] = []

    def quick(one: Cell) -> Forecast:
        return sample.model_copy(update={"verdict": "fits" if one.workload.gradient_checkpointing else "does not fit"})

    def ask(one: Cell) -> Forecast:
        whole.append(one)
        fits = one.workload.gradient_checkpointing and one.workload.batch_size == 4
        return sample.model_copy(update={"verdict": "fits" if fits else "does not fit"})

    (given,) = advise(cell_of(), 1, ask, quick=quick).suggestions
    assert given.changes == {"gradient_checkpointing": True, "batch_size": 4, "gradient_accumulation_steps": 2}
    assert all(one.workload.gradient_checkpointing for one in whole[1:])


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
        assert change.what in {*AXES, *fields, *change.settings}
        for name, value in change.settings.items():
            if "." in name:
                assert name in {
                    f"{space}.{one}" for space, kind in option_namespaces().items() for one in kind.model_fields
                }
            elif name in AXES:
                assert value in AXES[name]
                assert value not in change.of
            else:
                assert name in fields
        known = AXES.get(change.what, LOSSES)
        assert all(value in known for value in change.of)
