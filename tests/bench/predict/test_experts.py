"""Mixtures of experts: what PEFT and quantisation make of parameters that are stacked, predicted as they run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations import moe

from tests.bench.predict.test_equality import differences, traced
from vrambench.bench.plan.traits import stacked_weights
from vrambench.bench.plan.validity import check
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome
from vrambench.bench.predict.unmodelled import unmodelled
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.load import load_model

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EXPERTS = 6 * 4 * 3 * 64 * 96
"""Weights of the experts' matrices."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("mixtral")
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    return str(folder)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, where a job is traced as it is built: more would do what two do."""
    folder: Path = tmp_path_factory.mktemp("two-layers")
    (folder / "config.json").write_text(json.dumps(MIXTRAL | {"num_hidden_layers": 2}))
    return str(folder)


def cell_of(model: str, **more: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work: dict[str, Any] = {"model": model, "prompt_tokens": 24, "response_tokens": 8, "batch_size": 2, "lora_r": 4}
    work |= {"lora_target_modules": "all-linear", "steps": 1, "warmup_steps": 1, "rollout_batch": 2}
    for name, value in more.items():
        (axes if name in axes else work)[name] = value
    return resolve(axes, work)


def forecast(cell: Cell) -> Forecast:
    return Predictor("").forecast(cell)


def test_lora_on_all_linear_layers_is_predicted_with_as_many_parameters_as_the_job_trains(mixtral: str) -> None:
    cell = cell_of(mixtral)
    job = Job(cell, get_device("cpu"), lambda phase: None)
    job.load()
    trained = sum(parameter.numel() for parameter in job.parameters() if parameter.requires_grad)
    assert forecast(cell).parameters.trainable == trained


ALLOCATING: tuple[dict[str, Any], ...] = (
    {"precision": "fp32", "adapter": "none"},
    {"precision": "fp16"},
    {"precision": "bf16_amp", "adapter": "none"},
    {"precision": "fp16_amp"},
    {"precision": "fp32", "gradient_checkpointing": True},
)


def alike(cell: Cell, capability: tuple[int, int] | None = None) -> None:
    """The traced CPU job and the simulated one allocate the same."""
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, replace(get_device("meta"), stands_for="cpu", capability=capability))
    assert not differences(cell, real, simulated)
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()


@pytest.mark.parametrize("said", ALLOCATING, ids=lambda said: " ".join(map(str, said.values())))
def test_experts_of_every_type_allocate_on_the_simulated_device_as_on_the_cpu(
    two_layers: str, said: dict[str, Any]
) -> None:
    alike(cell_of(two_layers, **said))


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_below_capability_8_0_experts_go_by_transformers_own_operator(
    two_layers: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose backward pass makes the gradient of frozen experts too."""
    cell = cell_of(two_layers, adapter=adapter, lora_target_modules=["q_proj"] if adapter == "lora" else None)
    recent = Predictor("").simulation(cell)
    able = moe._can_use_grouped_mm
    monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda tokens, *others: tokens.is_meta and able(tokens, *others))
    alike(cell, (7, 5))
    old = Predictor("").simulation(cell, CARDS["t4"])
    assert {"transformers.grouped_mm_fallback.default"} <= {event.operator for event in old.trace.events}
    assert not any("grouped_mm_fallback" in event.operator for event in recent.trace.events)
    assert not unmodelled(cell, old.trace)


def test_rows_of_grouped_products_begin_at_multiples_of_16_bytes() -> None:
    tokens, weights = torch.randn(8, 16), torch.randn(2, 16, 20)
    offs = torch.tensor([3, 8], dtype=torch.int32)
    for width in (17, 20):
        there, rows = (
            torch.nn.functional.grouped_mm(one, other[..., :width], offs=offsets)
            for one, other, offsets in (
                (tokens, weights, offs),
                (tokens.to("meta"), weights.to("meta"), offs.to("meta")),
            )
        )
        assert (rows.shape, rows.stride(), rows.dtype) == (there.shape, there.stride(), there.dtype)


def test_what_peft_cannot_adapt_is_one_sentence(mixtral: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^adapter: PEFT cannot put it on these layers: .*use_dora"):
        forecast(cell_of(mixtral, adapter="dora"))


def test_a_job_that_fails_when_simulated_is_one_sentence(mixtral: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Job, index: int) -> None:
        raise RuntimeError("no such kernel\nand a second line")

    monkeypatch.setattr(Job, "step", failing)
    cell = cell_of(mixtral)
    words = "cannot be predicted: the simulated job ends in RuntimeError: no such kernel"
    with pytest.raises(NotPredicted, match=f"{words}$"):
        forecast(cell)
    told = outcome(Predictor(""), cell.flat(), None)
    assert told.reason is not None
    assert told.reason.endswith(words)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_experts_that_stay_in_16_bit_are_told_with_their_bytes(mixtral: str, precision: str) -> None:
    cell = cell_of(mixtral, precision=precision, lora_target_modules=["q_proj"])
    (told,) = (finding for finding in check(cell, "cuda") if finding.rule == "experts-16-bit")
    assert told.kind == "warn"
    assert told.reason.endswith(f": {EXPERTS * 2 / 2**30:.1f} GiB of each model stay in bf16")
    assert stacked_weights(mixtral) == EXPERTS
    assert stacked_weights("a model that cannot be read") == 0
    assert forecast(cell).roles["policy"].weights_bytes > EXPERTS * 2


def test_only_models_with_experts_are_told_of_them(mixtral: str) -> None:
    def rules(model: str, **said: Any) -> set[str]:
        cell = cell_of(model, lora_target_modules=["q_proj"], **said)
        return {finding.rule for finding in check(cell, "cuda")} & {"experts-16-bit", "no-experts"}

    packed = {"quantize_moe_experts": True}
    assert rules(mixtral, precision="bf16") == rules(mixtral, precision="nf4", nf4=packed) == set()
    assert rules("tiny", precision="nf4") == rules("tiny", precision="bf16", nf4=packed) == set()
    assert rules("tiny", precision="nf4", nf4=packed) == {"no-experts"}


@pytest.fixture(scope="module")
def whole_blocks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two layers, whose matrices' rows are whole blocks of 64, as bitsandbytes' CPU code needs them."""
    folder: Path = tmp_path_factory.mktemp("whole-blocks")
    (folder / "config.json").write_text(json.dumps(MIXTRAL | {"num_hidden_layers": 2, "intermediate_size": 64}))
    return str(folder)


def test_transformers_reads_experts_in_16_bit(whole_blocks: str, tmp_path: Path) -> None:
    """As this does by default, whatever BitsAndBytesConfig says: it replaces linear layers alone."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(whole_blocks), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    theirs = {name: parameter.dtype for name, parameter in read.named_parameters()}
    cell = cell_of(whole_blocks, precision="nf4")
    ours = load_model(cell.setup, get_device("cpu"), adapter=False, seed=0)
    assert {name: parameter.dtype for name, parameter in ours.named_parameters()} == theirs
    assert theirs["model.layers.0.mlp.experts.gate_up_proj"] == torch.bfloat16
    assert theirs["model.layers.0.self_attn.q_proj.weight"] == torch.uint8


@pytest.mark.parametrize(
    ("field", "value", "more"),
    [
        ("lora_target_modules", "all-linear", {}),
        ("lora_target_parameters", ["down_proj"], {"lora_target_modules": ["q_proj"]}),
    ],
)
def test_an_adapter_on_packed_experts_is_refused_in_one_sentence(
    whole_blocks: str, field: str, value: Any, more: dict[str, Any]
) -> None:
    """PEFT wants a gradient of the bytes that they are packed into, and fails in the first step."""
    cell = cell_of(whole_blocks, precision="nf4", nf4={"quantize_moe_experts": True}, **more | {field: value})
    said = r"packs, and PEFT adapts no packed parameter: adapt the other layers \(k_proj, o_proj, q_proj, v_proj\)"
    with pytest.raises(ConfigurationError, match=f"^{field}: .*{said}") as error:
        forecast(cell)
    assert error.value.field == field


@pytest.mark.parametrize("double", [False, True])
def test_packed_experts_take_four_bits_and_scales(whole_blocks: str, double: bool) -> None:
    nf4 = {"double_quant": double}
    said = {"precision": "nf4", "lora_target_modules": ["q_proj"]}
    plain = forecast(cell_of(whole_blocks, **said, nf4=nf4))
    packed = forecast(cell_of(whole_blocks, **said, nf4=nf4 | {"quantize_moe_experts": True}))
    weights = 2 * 4 * 3 * 64 * 64
    scales = weights // 64
    saved = plain.roles["policy"].weights_bytes - packed.roles["policy"].weights_bytes
    # Beside 4 bits a weight: fp32 scales, or scales of one byte in blocks of 256, with two tables and an offset for each stack.
    beside = 4 * scales if not double else scales + 4 * scales // 256
    tables = 4 * (1088 if double else 64)
    assert 0 <= weights * 2 - weights // 2 - beside - saved <= tables + 4 * 4
    assert packed.parameters == plain.parameters


def test_packed_experts_compute_with_weights_near_those_they_stand_for(whole_blocks: str) -> None:
    said = {"precision": "nf4", "adapter": "lora", "compute_dtype": "fp32"}
    nf4 = {"quantize_moe_experts": True}
    plain, packed = (
        load_model(cell_of(whole_blocks, **said, nf4=one).setup, get_device("cpu"), adapter=False, seed=0)
        for one in ({}, nf4)
    )
    name = "model.layers.1.mlp.experts"
    for stack in ("gate_up_proj", "down_proj"):
        exact, near = (getattr(model.get_submodule(name), stack) for model in (plain, packed))
        assert near.shape == exact.shape
        assert 0.05 < ((near - exact).norm() / exact.norm()).item() < 0.15


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"autocast": "bf16", "fp32_modules": "all"}])
def test_packed_experts_allocate_on_the_simulated_device_as_on_the_cpu(whole_blocks: str, more: dict[str, Any]) -> None:
    nf4 = {"quantize_moe_experts": True, "double_quant": not more}
    cell = cell_of(whole_blocks, precision="nf4", lora_target_modules=["q_proj"], nf4=nf4, **more)
    alike(cell)
