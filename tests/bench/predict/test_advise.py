"""What to change so that a cell fits: found from its ledger, in few predictions, and checked by predicting it once more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from vrambench.bench.commands.shared import default_matrix
from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.traits import packs_experts
from vrambench.bench.plan.validity import check
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.advise import advise
from vrambench.bench.predict.answer import Advice
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import frozen
from vrambench.bench.predict.reach import rejection
from vrambench.bench.predict.relief import CHANGES, ENVIRONMENT, Level, applies, settings_of
from vrambench.bench.results.forecast import KINDS, Forecast
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, option_namespaces, resolve
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.losses import LOSSES
from vrambench.methods.models.presets import PRESETS

FULL = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
LORA = FULL | {"adapter": "lora"}
WORK: dict[str, Any] = {
    "batch_size": 1,
    "prompt_tokens": 60,
    "response_tokens": 4,
    "gradient_checkpointing": True,
}
MOST = 40
"""Predictions that an answer must be found in."""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model of these cells: a smollm2-135m of 8 layers, not 30. What is advised goes by what takes most, which in these
    cells is the same, and each layer is replayed event by event."""
    folder = tmp_path_factory.mktemp("small")
    config = PRESETS["smollm2-135m"].config()
    config.num_hidden_layers = 8
    config.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORK, "model", str(folder))
        yield str(folder)


def cell_of(axes: dict[str, str] | None = None, **workload: Any) -> Cell:
    return resolve(FULL | (axes or {}), WORK | workload)


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """As in `fit`: collections between predictions need not look at what libraries made."""
    with frozen():
        yield


@dataclass
class Asking:
    """Asks a predictor under one budget, counts, and keeps what was asked."""

    budget: int
    predictor: Predictor = field(default_factory=lambda: Predictor(""))
    asked: list[Cell] = field(default_factory=list)

    def plain(self, cell: Cell) -> Forecast:
        self.asked.append(cell)
        return self.predictor.forecast(cell, self.budget)

    def expandable(self, cell: Cell) -> Forecast:
        self.asked.append(cell)
        return self.predictor.forecast(cell, self.budget, expandable=True)

    def advice(self, cell: Cell, wanted: int = 1, **more: Any) -> Advice:
        """What is advised: each configuration is valid, not warned of anew, and predicted as it says; in few predictions."""
        found = advise(cell, wanted, self.plain, expandable=self.expandable, **more)
        assert found.predictions == len(self.asked) < MOST
        warned = {finding.rule for finding in check(cell, "cuda")}
        for one in found.suggestions:
            fields = {name: value for name, value in one.changes.items() if name != ENVIRONMENT}
            variant = changed(cell, fields, said=more.get("said"))
            assert {finding.rule for finding in check(variant, "cuda")} <= warned
            forecast = (self.expandable if ENVIRONMENT in one.changes else self.plain)(variant)
            assert forecast.fits
            assert (one.verdict, one.device_bytes) == (forecast.verdict, forecast.memory.device_bytes)
            assert one.margin_bytes >= 0
            assert set(one.price) & set(one.changes)
        return found


def unlimited(cell: Cell) -> Forecast:
    return Predictor("").forecast(cell, 2**45)


def device_bytes(forecast: Forecast) -> int:
    assert forecast.memory.device_bytes is not None
    return forecast.memory.device_bytes


def share(forecast: Forecast, *kinds: str) -> float:
    """Of what is live at the peak."""
    total = sum(one.nbytes for one in forecast.at_peak)
    return sum(one.nbytes for one in forecast.at_peak if one.kind in kinds) / total


@pytest.mark.slow
def test_a_large_cache_of_keys_and_values_is_made_smaller_first() -> None:
    cell = cell_of(
        LORA | {"algorithm": "ppo"},
        model="smollm2-135m",
        batch_size=4,
        rollout_batch=32,
        prompt_tokens=1000,
        response_tokens=2,
        ppo={"epochs": 1},
    )
    own = unlimited(cell)
    assert share(own, "kv_cache") > 0.45
    asking = Asking(round(0.75 * device_bytes(own)))
    (first,) = asking.advice(cell).suggestions
    assert first.changes == {"micro_rollout_batch_size": 16}
    assert len(asking.asked) < 6


@pytest.mark.slow
def test_a_full_model_whose_weights_and_gradients_leave_no_room() -> None:
    cell = resolve(FULL, WORK | {"model": "llama-2-7b"})
    asking = Asking(int(23.64 * 2**30))
    found = asking.advice(cell, 3).suggestions
    assert [one.changes.get("optimizer", one.changes.get("adapter")) for one in found] == [
        "paged_adamw_8bit_layerwise",
        "galore_adamw_8bit_layerwise",
        "lora",
    ]
    assert not any("zero2" in str(one.changes) for one in found)


@pytest.mark.slow
def test_logits_that_lead_are_made_in_chunks_before_sequences_are_cut() -> None:
    cell = cell_of(LORA, response_tokens=6000, loss="nll")
    own = unlimited(cell)
    assert share(own, "logits_and_loss", "backward_temporaries") > 0.5
    found = Asking(round(0.5 * device_bytes(own))).advice(cell, 3).suggestions
    assert [set(one.changes) for one in found] == [{"loss"}, {"loss"}, {"max_length", "prompt_tokens"}]
    assert [one.changes["loss"] for one in found[:2]] == ["chunked_nll", "liger"]
    assert "a chunk at a time" in found[0].price["loss"]


def test_a_reference_is_asked_before_training_where_that_is_enough() -> None:
    cell = cell_of(FULL | {"algorithm": "dpo", "optimizer": "adamw_torch_fused"}, model="smollm2-135m")
    own = unlimited(cell)
    (first,) = Asking(device_bytes(own) - own.roles["reference"].weights_bytes // 4).advice(cell).suggestions
    assert first.changes == {"reference": "precomputed"}


def test_what_is_over_by_fragmentation_alone_gets_the_allocators_line() -> None:
    plain = {"model": "gpt2", "gradient_checkpointing": False}
    cell = cell_of({"precision": "fp32"}, **plain, batch_size=6, prompt_tokens=700, response_tokens=3)
    own = unlimited(cell)
    assert own.fragmentation_bytes > 700 * 2**20
    budget = device_bytes(own) - 100 * 2**20
    (first,) = Asking(budget).advice(cell).suggestions
    assert first.changes == {ENVIRONMENT: "expandable_segments:True"}
    assert first.verdict == "fits"
    said = Asking(budget, Predictor("large_segment_size_mb:22"))
    (again,) = advise(cell, 1, said.plain, expandable=said.expandable).suggestions
    assert again.changes == {ENVIRONMENT: "large_segment_size_mb:22,expandable_segments:True"}


@pytest.mark.slow
def test_of_what_can_never_fit_the_nearest_is_told_and_what_is_missing() -> None:
    cell = resolve(FULL, WORK | {"model": "llama-3.1-70b"})
    advice = Asking(int(23.64 * 2**30)).advice(cell, 3)
    assert advice.suggestions == ()
    assert advice.predictions < 10
    assert re.fullmatch(
        r"no change that is known makes it fit; nearest is precision nf4, adapter lora, nf4.double_quant True: 1\d\.\d\d GiB too "
        r"much; largest in it: weights, 3\d\.\d\d GiB; a card with room for it: a40",
        advice.ending,
    )


@pytest.mark.slow
def test_changes_that_are_not_enough_alone_are_combined_and_none_is_needless() -> None:
    cell = cell_of(batch_size=8, response_tokens=2000, loss="nll", gradient_checkpointing=False)
    both = changed(cell, {"loss": "chunked_nll", "gradient_checkpointing": True})
    asking = Asking(round(1.02 * device_bytes(unlimited(both))) + 100 * 2**20)
    (found,) = asking.advice(cell).suggestions
    assert len(found.price) > 1
    for name in set(found.changes) & set(found.price):
        fewer = {one: value for one, value in found.changes.items() if one != name}
        if name == "batch_size":
            fewer.pop("gradient_accumulation_steps")
        if ENVIRONMENT not in found.changes:
            assert asking.plain(changed(cell, fewer)).verdict != "fits"


def test_what_changes_least_of_the_training_comes_first() -> None:
    cell = cell_of(batch_size=8, response_tokens=2000, gradient_checkpointing=False)
    found = Asking(round(0.5 * device_bytes(unlimited(cell)))).advice(cell, 2).suggestions
    assert len(found) == 2
    levels = [max(one.level for one in CHANGES for what in given.price if one.what == what) for given in found]
    assert levels == sorted(levels)
    assert sorted(CHANGES, key=lambda one: one.level) == list(CHANGES), "the table is in their order"


def test_a_change_takes_what_the_matrix_says_of_fields_that_the_cell_does_not_use() -> None:
    selection = Selection(profile="24gb", axes=FULL)
    (planned,) = select(load_matrix(default_matrix()), selection, "cuda").cells
    assert planned.cell.workload.lora_target_modules is None
    assert changed(planned.cell, {"adapter": "lora"}, said=planned.said).workload.lora_target_modules == "all-linear"
    assert changed(planned.cell, {"adapter": "lora"}).workload.lora_target_modules == "auto"
    said = {"lora_target_modules": "all-linear", "nf4": {"double_quant": True}, "lora_r": 8}
    asking = Asking(450 * 2**20)
    asking.advice(cell_of(), 1, said=said)
    adapted = {(one.workload.lora_target_modules, one.workload.lora_r) for one in asking.asked if one.adapter == "lora"}
    assert adapted == {("all-linear", 8)}
    nf4 = changed(cell_of(), {"precision": "nf4", "adapter": "lora"}, said=said)
    assert nf4.workload.options["nf4"] == {"double_quant": True, "quantize_moe_experts": False}


def test_an_adapter_takes_the_place_of_an_optimizer_that_saves_nothing_beside_it() -> None:
    (lora,) = [one for one in CHANGES if one.what == "adapter"]
    plain = {"adapter": "lora", "optimizer": "adamw_torch_fused", "offload": "none"}
    for axes in ({"optimizer": "paged_adamw_8bit"}, {"optimizer": "galore_adamw"}, {"offload": "zero2_optimizer"}):
        assert settings_of(lora, cell_of(axes)) == plain
    assert settings_of(lora, cell_of()) == {"adapter": "lora"}


def test_packed_experts_are_advised_where_there_are_any(tmp_path: Path) -> None:
    config = {"intermediate_size": 5120, "hidden_size": 1024, "num_hidden_layers": 2, "num_local_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(tiny("mixtral") | config))
    cell = cell_of(
        LORA | {"precision": "nf4"}, model=str(tmp_path), lora_target_modules="all-linear", loss="chunked_nll"
    )
    asking = Asking(round(0.8 * device_bytes(unlimited(cell))))
    (first,) = asking.advice(cell).suggestions
    assert first.changes == {
        "nf4.quantize_moe_experts": True,
        "lora_target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
    }
    (packed,) = [one for one in CHANGES if one.what == "nf4.quantize_moe_experts"]
    assert not applies(packed, cell_of(LORA | {"precision": "nf4"}))
    bf16 = cell_of(LORA, model=str(tmp_path), lora_target_modules="all-linear", loss="chunked_nll")
    (both,) = Asking(asking.budget).advice(bf16).suggestions
    assert packs_experts(changed(bf16, both.changes)), "with bf16, once it is nf4"


def test_what_cannot_be_run_is_passed_over() -> None:
    cell = cell_of(LORA, response_tokens=2000, loss="nll")
    asking = Asking(round(0.6 * device_bytes(unlimited(cell))))

    def cannot(one: Cell) -> Forecast:
        if one.workload.loss == "chunked_nll":
            raise NotPredicted("the simulated job ends in RuntimeError")
        if one.workload.activation_offloading:
            raise ConfigurationError("activation_offloading: no")
        return asking.plain(one)

    (found,) = advise(cell, 1, cannot).suggestions
    assert found.changes == {"loss": "liger"}


def test_what_is_tight_by_luck_is_not_advised() -> None:
    cell = cell_of(LORA, batch_size=8, response_tokens=1000)
    halved = changed(cell, {"batch_size": 4, "gradient_accumulation_steps": 2})
    asking = Asking(device_bytes(unlimited(halved)) + 2**20)
    assert asking.plain(halved).verdict == "tight"
    asking.asked.clear()
    (given,) = asking.advice(cell).suggestions
    assert given.changes != {"batch_size": 4, "gradient_accumulation_steps": 2}


def test_nothing_fits_where_the_context_takes_the_budget() -> None:
    advice = Asking(64 * 2**20).advice(cell_of(model="tiny"), 3)
    assert advice.suggestions == ()
    assert re.search(r"nearest is .+: 0\.\d\d GiB too much; largest in it: ", advice.ending)


def test_what_fits_needs_no_advice() -> None:
    advice = Asking(2**40).advice(cell_of(), 3)
    assert (advice.suggestions, advice.predictions) == ((), 1)
    assert "fits as it is" in advice.ending


def test_the_search_stops_at_its_cap_and_says_so() -> None:
    cell = cell_of(batch_size=8, response_tokens=2000, gradient_checkpointing=False)
    asking = Asking(round(0.1 * device_bytes(unlimited(cell))))
    advice = asking.advice(cell, 3, most=3)
    assert advice.predictions == 3
    assert advice.ending.startswith("stopped at the limit of 3 predictions, with 0 of 3 found; nearest is ")
    assert all(rejection(one) is None for one in asking.asked)


def test_a_quick_no_is_enough_and_what_is_given_was_asked_whole() -> None:
    cell = cell_of(LORA, response_tokens=2000, loss="nll")
    asking = Asking(round(0.6 * device_bytes(unlimited(cell))))
    whole: list[Cell] = []

    def ask(one: Cell) -> Forecast:
        whole.append(one)
        return asking.plain(one)

    (given,) = advise(cell, 1, ask, quick=asking.plain).suggestions
    assert given.changes == {"loss": "chunked_nll"}
    assert [one.workload.loss for one in whole] == ["nll", "chunked_nll"]


def test_every_change_names_what_exists() -> None:
    fields = set(resolve(FULL, {}).workload.flat())
    options = {f"{space}.{one}" for space, kind in option_namespaces().items() for one in kind.model_fields}
    roles = ("policy", "reference", "reward", "value")
    for change in CHANGES:
        assert change.what in {*AXES, *fields, *options, ENVIRONMENT}
        assert set(change.leaves) <= {*KINDS, *roles, "fragmentation"}
        assert change.level in Level
        for name, value in change.settings.items():
            if name in AXES:
                assert value in AXES[name]
                assert value not in change.of
            else:
                assert name in {*fields, *options, ENVIRONMENT}
        known = {"loss": LOSSES, "attention": ("eager", "math"), "reference": ("copy",)}.get(
            change.what, AXES.get(change.what, ())
        )
        assert all(value in known for value in change.of)
