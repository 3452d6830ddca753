"""Every rule has a cell that it holds for and one nearby that it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.validity import RULES, check
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import Kind
from vrambench.methods.errors import ConfigurationError

USUAL = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


def cell_of(**said: Any) -> Cell:
    """bf16, full fine-tuning, AdamW, SFT on the tiny model, but for what is said."""
    axes = {axis: said.pop(axis, usual) for axis, usual in USUAL.items()}
    return resolve(axes, {"model": "tiny", **said})


@dataclass(frozen=True)
class Case:
    """`near` is laid over `hit`: a small change after which the rule does not hold. None: nothing but the device."""

    rule: str
    hit: dict[str, Any]
    near: dict[str, Any]
    device: Kind = "cpu"
    near_device: Kind = "cpu"
    kind: str = "reject"
    bf16: bool = True
    near_bf16: bool = True
    alone: bool = field(default=True)
    """Whether the hit breaks this rule only."""


LAYERWISE = {"optimizer": "galore_adamw_layerwise", "max_grad_norm": 0}

EXPERTS = {"model": str(Path(__file__).parent / "experts"), "adapter": "lora", "lora_target_modules": ["q_proj"]}
"""Mixtral in miniature."""

CASES = [
    Case(
        "experts-16-bit",
        {**EXPERTS, "precision": "nf4"},
        {"nf4": {"quantize_moe_experts": True}},
        kind="warn",
    ),
    Case("experts-16-bit", {**EXPERTS, "precision": "int8"}, {"precision": "bf16"}, kind="warn"),
    Case(
        "no-experts",
        {"model": "tiny-gpt2", "precision": "nf4", "adapter": "lora", "nf4": {"quantize_moe_experts": True}},
        EXPERTS,
        kind="warn",
    ),
    Case("nf4-cpu-blocks", {"precision": "nf4", "adapter": "lora"}, {}, near_device="cuda", kind="warn"),
    Case("nf4-cpu-blocks", {"precision": "nf4", "adapter": "lora"}, {"model": "tiny-gpt2"}, kind="warn"),
    Case("nf4-cpu-blocks", {"precision": "nf4", "adapter": "lora"}, {"precision": "int8"}, kind="warn"),
    Case(
        "autocast-compute-dtype",
        {"precision": "nf4", "model": "tiny-gpt2", "adapter": "lora", "autocast": "fp16"},
        {"compute_dtype": "fp16"},
    ),
    Case(
        "autocast-compute-dtype",
        {"precision": "int8", "adapter": "lora", "autocast": "bf16", "compute_dtype": "fp32"},
        {"autocast": "none"},
    ),
    Case(
        "fp32-modules-parts",
        {"precision": "nf4", "model": "tiny-gpt2", "adapter": "lora", "fp32_modules": ["norms"]},
        {"fp32_modules": "all"},
    ),
    Case(
        "fp32-modules-parts",
        {"precision": "int8", "adapter": "lora", "fp32_modules": ["norms", "head"]},
        {"autocast": "bf16"},
    ),
    Case(
        "fp32-modules-fp32",
        {"precision": "nf4", "model": "tiny-gpt2", "adapter": "lora", "fp32_modules": "all", "compute_dtype": "fp32"},
        {"compute_dtype": "fp16"},
    ),
    Case(
        "fp32-modules-zero",
        {"precision": "nf4", "adapter": "lora", "fp32_modules": "all", "offload": "zero2_optimizer"},
        {"fp32_modules": "none"},
        alone=False,
    ),
    Case(
        "zero-amp",
        {"precision": "nf4", "adapter": "lora", "autocast": "bf16", "offload": "zero2_optimizer"},
        {"autocast": "none"},
        alone=False,
    ),
    Case(
        "fp32-flash",
        {"precision": "nf4", "model": "tiny-gpt2", "adapter": "lora", "fp32_modules": "all", "attention": "flash"},
        {"autocast": "bf16"},
    ),
    Case(
        "fp16-unscaled",
        {"precision": "nf4", "adapter": "lora", "autocast": "fp16", "compute_dtype": "fp16", "adapter_dtype": "fp16"},
        {"adapter_dtype": "fp32"},
        alone=False,
    ),
    Case("quantized-full", {"precision": "int8"}, {"adapter": "lora"}),
    Case("quantized-full", {"precision": "nf4", "algorithm": "ppo"}, {"precision": "bf16"}, device="cuda"),
    Case(
        "value-quantized",
        {"precision": "nf4", "algorithm": "ppo", "value": "separate"},
        {"adapter": "lora"},
        alone=False,
    ),
    Case(
        "value-quantized",
        {"precision": "nf4", "algorithm": "ppo", "value": "separate"},
        {"value": "head"},
        alone=False,
    ),
    Case("galore-adapter", {"optimizer": "galore_adamw", "adapter": "lora"}, {"adapter": "none"}, alone=False),
    Case("galore-zero", {"optimizer": "galore_adamw", "offload": "zero2_optimizer"}, {"offload": "none"}),
    Case("galore-zero", {"optimizer": "galore_adamw", "offload": "zero2_optimizer"}, {"optimizer": "adafactor"}),
    Case("galore-quantized", {"optimizer": "galore_adamw", "precision": "int8"}, {"precision": "bf16"}, alone=False),
    Case(
        "layerwise-multi-backward", {**LAYERWISE, "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1}
    ),
    Case("layerwise-multi-backward", {**LAYERWISE, "gradient_accumulation_steps": 2}, {"optimizer": "galore_adamw"}),
    Case("layerwise-clip", {**LAYERWISE, "max_grad_norm": 1.0}, {"max_grad_norm": 0}),
    Case("layerwise-clip", {**LAYERWISE, "precision": "fp16_amp"}, {"precision": "bf16_amp"}, alone=False),
    Case("layerwise-zero", {**LAYERWISE, "offload": "zero2_optimizer"}, {"offload": "none"}, alone=False),
    Case("galore-8bit-cpu", {"optimizer": "galore_adamw_8bit"}, {}, near_device="cuda"),
    Case("galore-8bit-cpu", {"optimizer": "galore_adamw_8bit"}, {"optimizer": "adamw_bnb_8bit"}),
    Case(
        "fp16-unscaled",
        {"precision": "fp16_amp", "adapter": "lora", "adapter_dtype": "fp16", "optimizer": "adafactor"},
        {"adapter_dtype": "fp32"},
    ),
    Case("fp16-full-adamw", {"precision": "fp16"}, {"optimizer": "adamw_bnb_8bit"}),
    Case("fp16-full-adamw", {"precision": "fp16", "optimizer": "adamw_torch_fused"}, {"optimizer": "adafactor"}),
    Case("fp16-full-adamw", {"precision": "fp16"}, {"adapter": "lora"}),
    Case("fp16-full-adamw", {"precision": "fp16"}, {"adamw": {"eps": 1e-4}}),
    Case("fp16-full-adamw", {"precision": "fp16"}, {"offload": "zero2_optimizer"}, device="cuda", near_device="cuda"),
    Case(
        "fp16-full-adamw",
        {"precision": "fp16", "optimizer": "galore_adamw", "galore": {"eps": 1e-8}},
        {"galore": {"eps": 1e-6}},
    ),
    Case("int8-read-cpu", {"precision": "int8", "adapter": "dora"}, {}, near_device="cuda"),
    Case("int8-read-cpu", {"precision": "int8", "adapter": "dora"}, {"adapter": "lora"}),
    Case("int8-read-cpu", {"precision": "int8", "adapter": "dora"}, {"precision": "nf4"}),
    Case("zero-fp16-cpu", {"precision": "fp16", "offload": "zero2_optimizer"}, {}, near_device="cuda"),
    Case(
        "zero-fp16-cpu",
        {"precision": "nf4", "adapter": "lora", "compute_dtype": "fp16", "offload": "zero2_optimizer"},
        {"compute_dtype": "bf16"},
        alone=False,
    ),
    Case("zero-amp", {"precision": "bf16_amp", "offload": "zero2_optimizer"}, {"precision": "bf16"}),
    Case("zero-amp", {"precision": "fp16_amp", "offload": "zero2_optimizer"}, {"offload": "none"}, device="cuda"),
    Case("fp32-flash", {"precision": "fp32", "attention": "flash"}, {"attention": "efficient"}),
    Case("fp32-flash", {"precision": "fp32", "attention": "flash"}, {"precision": "bf16_amp"}, device="meta"),
    Case("reference-adapter-off", {"algorithm": "ppo", "reference": "adapter_off"}, {"adapter": "lora"}),
    Case("reference-adapter-off", {"algorithm": "ppo", "reference": "adapter_off"}, {"reference": "copy"}),
    Case("remax-greedy", {"algorithm": "remax", "remax": {"temperature": 0}}, {"remax": {"temperature": 0.5}}),
    Case("too-long", {"prompt_tokens": 2000, "response_tokens": 49}, {"response_tokens": 48}),
    Case("too-long", {"model": "tiny-gpt2", "prompt_tokens": 1024}, {"model": "tiny-opt"}),
    Case(
        "sliding-window",
        {"model": "tiny-mistral", "prompt_tokens": 1024, "response_tokens": 1},
        {"prompt_tokens": 1023},
    ),
    Case("sliding-window", {"model": "tiny-mistral", "prompt_tokens": 1024, "response_tokens": 1}, {"model": "tiny"}),
    Case("rollout-batch", {"algorithm": "ppo", "rollout_batch": 8, "batch_size": 3}, {"rollout_batch": 9}),
    Case(
        "rollout-batch",
        {"algorithm": "remax", "rollout_batch": 8, "batch_size": 4, "gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 2},
    ),
    Case("bf16-hardware", {"precision": "bf16", "attention": "efficient"}, {}, "cuda", "cuda", bf16=False),
    Case("flash-hardware", {"precision": "fp16", "adapter": "lora"}, {}, "cuda", "cuda", bf16=False),
    Case(
        "flash-hardware",
        {"precision": "fp16", "adapter": "lora", "attention": "flash"},
        {"attention": "efficient"},
        "cuda",
        "cuda",
        bf16=False,
        near_bf16=False,
    ),
    Case(
        "bf16-hardware",
        {"precision": "bf16_amp", "attention": "efficient"},
        {"precision": "fp16_amp"},
        "cuda",
        "cuda",
        bf16=False,
        near_bf16=False,
    ),
    Case("galore-fp32", {"optimizer": "galore_adamw", "precision": "fp32"}, {"precision": "bf16"}, kind="warn"),
    Case(
        "galore-fp32", {"optimizer": "galore_adamw", "precision": "bf16_amp"}, {"optimizer": "adafactor"}, kind="warn"
    ),
    Case(
        "zero-adapter-dtype",
        {"adapter": "lora", "offload": "zero2_optimizer"},
        {"adapter_dtype": "bf16"},
        kind="warn",
        alone=False,
    ),
    Case(
        "lora-offload", {"adapter": "lora", "offload": "zero2_optimizer"}, {"offload": "none"}, kind="warn", alone=False
    ),
    Case(
        "zero-factored",
        {"optimizer": "adafactor", "offload": "zero2_optimizer"},
        {"optimizer": "adamw_torch"},
        kind="warn",
    ),
    Case(
        "zero-eight-bit",
        {"optimizer": "adamw_bnb_8bit", "offload": "zero2_optimizer"},
        {"optimizer": "adamw_torch"},
        kind="warn",
    ),
    Case(
        "zero-eight-bit",
        {"optimizer": "paged_adamw_8bit", "offload": "zero2_optimizer"},
        {"offload": "none"},
        kind="warn",
    ),
    Case(
        "rollout-dropout",
        {"adapter": "lora", "algorithm": "ppo", "lora_dropout": 0.1},
        {"algorithm": "sft"},
        kind="warn",
    ),
    Case(
        "int8-odd-width",
        {"precision": "int8", "adapter": "lora", "model": "llama-1b"},
        {"model": "llama-3.2-3b"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "int8-odd-width",
        {"precision": "int8", "adapter": "lora", "model": "llama-1b"},
        {},
        device="cuda",
        near_device="cpu",
    ),
    Case(
        "int8-checkpointing",
        {"precision": "int8", "adapter": "lora", "gradient_checkpointing": True},
        {"precision": "nf4"},
        device="cuda",
        near_device="cuda",
        kind="warn",
    ),
    Case(
        "int8-checkpointing",
        {"precision": "int8", "adapter": "lora", "gradient_checkpointing": True},
        {"gradient_checkpointing": False},
        device="cuda",
        near_device="cuda",
        kind="warn",
    ),
    Case("lora-paged", {"adapter": "lora", "optimizer": "paged_adamw_8bit"}, {"optimizer": "adamw_torch"}, kind="warn"),
    Case("lora-paged", {"adapter": "lora", "optimizer": "adamw_bnb_8bit"}, {"adapter": "none"}, kind="warn"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.near or case.near_device}")
def test_rule(case: Case) -> None:
    found = check(cell_of(**case.hit), case.device, bf16=case.bf16)
    kinds = {finding.rule: finding.kind for finding in found}
    assert kinds.get(case.rule) == case.kind
    if case.alone:
        assert set(kinds) == {case.rule}
    near = check(cell_of(**{**case.hit, **case.near}), case.near_device, bf16=case.near_bf16)
    assert case.rule not in {finding.rule for finding in near}


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in RULES} == {case.rule for case in CASES}
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"precision": "fp32", "algorithm": "ppo", "value": "separate"},
        {"model": "tiny-gpt2", "precision": "nf4", "adapter": "lora", "algorithm": "remax"},
        {"precision": "int8", "adapter": "lora", "algorithm": "ppo", "reference": "adapter_off"},
        {**LAYERWISE, "algorithm": "ppo"},
        {"precision": "fp16", "optimizer": "adafactor"},
    ],
)
def test_what_runs_is_let_through(said: dict[str, Any]) -> None:
    assert check(cell_of(**said), "cpu") == ()


def test_rejections_come_first() -> None:
    said = {"precision": "fp32", "optimizer": "galore_adamw", "offload": "zero2_optimizer"}
    assert [finding.kind for finding in check(cell_of(**said), "cpu")] == ["reject", "warn"]


def test_reasons_are_sentences_for_people() -> None:
    for rule in RULES:
        assert len(rule.reason.split()) >= 5
        assert not rule.reason.endswith(".")


OWN = """
from dataclasses import replace
from vrambench.methods.algorithms.ppo import PPO
from vrambench.methods.optimizers.adamw import ADAMW_TORCH
from vrambench.methods.offload.none import NONE

STEPPING = replace(ADAMW_TORCH, summary="steps in backward", layerwise=True)
CARD = replace(ADAMW_TORCH, summary="a kernel of its own", cuda_only="its kernel is CUDA")
GROUPS = replace(PPO, summary="four responses to each prompt", sequences_per_prompt=lambda workload: 4)
ENGINE = replace(NONE, summary="another engine", zero_stage=1)
"""


@pytest.fixture
def own_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_axis_values.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own_values")
def test_a_users_own_value_obeys_the_rules() -> None:
    own = cell_of(optimizer="own_axis_values:STEPPING", offload="own_axis_values:ENGINE")
    assert {finding.rule for finding in check(own, "cuda")} == {"layerwise-clip", "layerwise-zero"}


@pytest.mark.usefixtures("own_values")
def test_a_value_that_needs_cuda_says_so_on_a_cpu() -> None:
    own = cell_of(optimizer="own_axis_values:CARD")
    (finding,) = check(own, "cpu")
    assert (finding.rule, finding.kind) == ("cuda-only", "reject")
    assert finding.reason == "own_axis_values:CARD runs on CUDA alone: its kernel is CUDA"
    assert check(own, "cuda") == check(own, "meta") == ()


def test_galores_8bit_optimizers_give_their_reason_once() -> None:
    assert [finding.rule for finding in check(cell_of(optimizer="galore_adamw_8bit"), "cpu")] == ["galore-8bit-cpu"]


def test_a_temperature_that_no_rule_covers_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"ppo\.temperature"):
        cell_of(algorithm="ppo", ppo={"temperature": 0})


@pytest.mark.usefixtures("own_values")
def test_a_rollout_of_several_responses_to_each_prompt_is_whole_in_sequences() -> None:
    def found(**said: int) -> list[tuple[str, str]]:
        cell = cell_of(algorithm="own_axis_values:GROUPS", **said)
        return [(finding.rule, finding.reason.rpartition(": ")[2]) for finding in check(cell, "cuda")]

    assert found(batch_size=8, rollout_batch=2) == []
    assert found(batch_size=2, gradient_accumulation_steps=4, rollout_batch=4) == []
    said = "rollout_batch 3 is no multiple of 2; the nearest above is 4"
    assert found(batch_size=8, rollout_batch=3) == [("rollout-batch", said)]


def test_the_table_has_the_rejections_first() -> None:
    kinds = [rule.kind for rule in RULES]
    assert kinds == sorted(kinds)
