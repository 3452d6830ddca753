"""Every rule has a cell that it holds for and one nearby that it does not. Long, since it is one table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.validity import RULES, check
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import Kind
from vrambench.methods.errors import ConfigurationError

USUAL = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_hidden_layers": 4, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA, RWKV = ({**SMALL, "model_type": kind} for kind in ("llama", "rwkv"))
GEMMA2 = {**SMALL, "model_type": "gemma2", "final_logit_softcapping": None}
GEMMA3 = {**SMALL, "model_type": "gemma3_text", "sliding_window": 256}
LLAMA4 = {
    **SMALL,
    "model_type": "llama4_text",
    "attention_chunk_size": 256,
    "num_local_experts": 2,
    "intermediate_size_mlp": 96,
}
BLOOM = {"model_type": "bloom", "vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4}


def cell_of(folder: Path | None = None, **said: Any) -> Cell:
    """bf16, full fine-tuning, AdamW, SFT on the tiny model, but for what is said. A `model` may be a configuration, written into
    `folder`."""
    model = said.get("model")
    if isinstance(model, dict):
        assert folder is not None
        (folder / model["model_type"]).mkdir(exist_ok=True)
        (folder / model["model_type"] / "config.json").write_text(json.dumps(model))
        said["model"] = str(folder / model["model_type"])
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


FROM_LABELS = {"algorithm": "ppo", "loss": "nll_4_46"}
LAYERWISE = {"optimizer": "galore_adamw_layerwise", "max_grad_norm": 0}
TORCHAO = {"offload": "torchao_optimizer", "max_grad_norm": 0}

EXPERTS = {"model": str(Path(__file__).parent / "experts"), "adapter": "lora", "lora_target_modules": ["q_proj"]}
"""Mixtral in miniature."""

MERGE: dict[str, Any] = {"algorithm": "merge", "adapter": "lora", "adapter_weights": "saved:sft", "save": "merged"}
TRL = {"algorithm": "trl_sft", "loss": "nll"}
TRL_ADAPTED = {**TRL, "precision": "int8", "adapter": "lora"}

CASES = [
    Case("trainer-offload", {**TRL, "offload": "zero2_optimizer"}, {"offload": "none"}),
    Case("trainer-offload", {**TRL, "offload": "zero2_optimizer"}, {"algorithm": "sft"}),
    Case("trainer-optimizer", {**TRL, "optimizer": "galore_adamw"}, {"optimizer": "adafactor"}),
    Case("trainer-optimizer", {**TRL, "optimizer": "adafactor", "adafactor": {"beta1": 0.9}}, {"adafactor": {}}),
    Case("trainer-optimizer", {**TRL, "optimizer": "tests.bench.plan.lacking:OTHER"}, {"algorithm": "sft"}),
    Case("trainer-loss", {**TRL, "loss": "scored"}, {"loss": "chunked_nll"}),
    Case("trainer-loss", {"algorithm": "trl_dpo", "loss": "nll"}, {"loss": "scored"}),
    Case("trainer-lengths", {**TRL, "lengths": {8: 1.0}}, {"algorithm": "sft"}),
    Case("trainer-settings", {**TRL, "trl": {"betas": 0.1}}, {"trl": {"neftune_noise_alpha": 5}}),
    Case("trainer-settings", {**TRL, "trl": {"learning_rate": 0.1}}, {"trl": {}}),
    Case("trainer-settings", {**TRL, "trl": {"beta": 0.1}}, {"algorithm": "trl_dpo", "loss": "scored"}),
    Case("trainer-activation-offloading", {**TRL, "activation_offloading": True}, {}, near_device="cuda", alone=False),
    Case(
        "trainer-activation-offloading",
        {"algorithm": "trl_grpo", "activation_offloading": True},
        {"activation_offloading": False},
        "cuda",
        "cuda",
        alone=False,
    ),
    Case("trainer-adapter-dtype", TRL_ADAPTED, {"adapter_dtype": "bf16"}),
    Case("trainer-adapter-dtype", TRL_ADAPTED, {"algorithm": "sft"}),
    Case("trainer-adapter-schedule", {**TRL, "adapter": "adalora"}, {"adapter": "lora"}, alone=False),
    Case("trainer-adapter-schedule", {**TRL, "adapter": "adalora"}, {"algorithm": "sft"}, alone=False),
    Case("trainer-virtual-tokens", {"algorithm": "trl_dpo", "adapter": "prompt_tuning"}, {"adapter": "lora"}),
    Case("trainer-virtual-tokens", {"algorithm": "trl_grpo", "adapter": "prompt_tuning"}, {"algorithm": "grpo"}),
    Case("trainer-fp16-cpu", {**TRL, "precision": "fp16_amp"}, {}, near_device="cuda"),
    Case("not-installed", {"optimizer": "tests.bench.plan.lacking:OPTIMIZER"}, {"optimizer": "adamw_torch"}),
    Case("loss-logprobs", FROM_LABELS, {"loss": "nll"}),
    Case("loss-logprobs", FROM_LABELS, {"algorithm": "sft"}),
    Case("loss-logprobs", {"algorithm": "remax", "loss": "liger"}, {"algorithm": "sft"}, "cuda", "cuda"),
    Case("loss-logprobs", {"algorithm": "dpo", "loss": "nll_4_45"}, {"loss": "nll"}),
    Case("loss-scores", {"algorithm": "reward", "loss": "nll"}, {"loss": "scored"}),
    Case("loss-scores", {"algorithm": "reward", "loss": "chunked_nll"}, {"algorithm": "dpo"}),
    Case("reference-needed", {"algorithm": "dpo", "reference": "none"}, {"reference": "copy"}),
    Case("reference-needed", {"algorithm": "dpo", "reference": "none"}, {"dpo": {"loss_type": "simpo"}}),
    Case("reference-needed", {"algorithm": "dpo", "reference": "none"}, {"algorithm": "ppo"}),
    Case(
        "reference-unused",
        {"algorithm": "dpo", "reference": "copy", "dpo": {"loss_type": "orpo"}},
        {"reference": "auto"},
    ),
    Case(
        "reference-unused", {"algorithm": "dpo", "reference": "precomputed", "dpo": {"loss_type": "cpo"}}, {"dpo": {}}
    ),
    Case("reference-precomputed", {"algorithm": "ppo", "reference": "precomputed"}, {"algorithm": "dpo"}),
    Case("reference-precomputed", {"algorithm": "remax", "reference": "precomputed"}, {"reference": "copy"}),
    Case("reference-dtype", {"algorithm": "dpo", "adapter": "lora", "reference_dtype": "fp32"}, {"reference": "copy"}),
    Case(
        "reference-dtype",
        {"algorithm": "ppo", "reference": "none", "reference_dtype": "fp32"},
        {"reference_dtype": None},
    ),
    Case(
        "reference-flash",
        {"algorithm": "dpo", "reference_dtype": "fp32", "attention": "flash"},
        {"attention": "sdpa"},
    ),
    Case(
        "reference-flash",
        {"algorithm": "dpo", "reference_dtype": "fp32", "attention": "flash"},
        {"autocast": "bf16"},
    ),
    Case("reference-adapter-off", {"algorithm": "dpo", "reference": "adapter_off"}, {"adapter": "lora"}),
    Case("lengths-algorithm", {"algorithm": "dpo", "lengths": {64: 1}}, {"algorithm": "sft"}, alone=False),
    Case("lengths-algorithm", {"algorithm": "reward", "lengths": {64: 1}}, {"algorithm": "sft"}, alone=False),
    Case(
        "pairs-dropout",
        {"algorithm": "dpo", "adapter": "lora", "lora_dropout": 0.1},
        {"lora_dropout": 0},
        kind="warn",
    ),
    Case(
        "pairs-dropout",
        {"algorithm": "reward", "adapter": "lora", "lora_dropout": 0.1},
        {"algorithm": "sft"},
        kind="warn",
    ),
    Case("loss-cuda-only", {"loss": "liger"}, {}, near_device="cuda"),
    Case("loss-cuda-only", {"loss": "liger"}, {"loss": "chunked_nll"}),
    Case(
        "experts-16-bit",
        {**EXPERTS, "precision": "nf4"},
        {"nf4": {"quantize_moe_experts": True}},
        kind="warn",
    ),
    Case(
        "layers-16-bit",
        {"precision": "int8", "adapter": "lora", "model": "falcon-7b"},
        {"model": "gpt2"},
        kind="warn",
        alone=False,
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
        "kbit-large-vocab",
        {"precision": "nf4", "adapter": "lora", "model": "qwen2.5-7b", "fp32_modules": "all"},
        {"fp32_modules": "none"},
        "cuda",
        "cuda",
        "warn",
    ),
    Case(
        "kbit-large-vocab",
        {"precision": "int8", "adapter": "lora", "model": "llama-3.1-8b", "fp32_modules": ["head"], "autocast": "bf16"},
        {"fp32_modules": ["norms"]},
        "cuda",
        "cuda",
        "warn",
        alone=False,
    ),
    Case(
        "kbit-large-vocab",
        {"precision": "nf4", "adapter": "lora", "model": "llama-3.1-8b", "fp32_modules": "all"},
        {"model": "llama-2-7b"},
        "cuda",
        "cuda",
        "warn",
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
    Case(
        "fp16-unscaled",
        {"precision": "nf4", "adapter": "lora", "autocast": "fp16", "compute_dtype": "fp16", "adapter_dtype": "bf16"},
        {"adapter_dtype": "fp32"},
        alone=False,
    ),
    Case("fp16-unscaled", {"precision": "bf16", "autocast": "fp16"}, {"autocast": "bf16"}),
    Case(
        "zero-amp",
        {"precision": "bf16", "autocast": "bf16", "offload": "zero2_optimizer"},
        {"autocast": "none"},
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
    Case("galore-adapter", {"optimizer": "apollo_adamw", "adapter": "dora"}, {"optimizer": "muon"}, alone=False),
    Case("galore-zero", {"optimizer": "apollo_adamw", "offload": "zero2_optimizer"}, {"optimizer": "lion_8bit"}),
    Case("galore-quantized", {"optimizer": "apollo_adamw", "precision": "nf4"}, {"precision": "bf16"}, alone=False),
    Case("galore-16-bit-svd", {"optimizer": "galore_adafactor"}, {"optimizer": "galore_adamw"}, kind="warn"),
    Case("galore-16-bit-svd", {"optimizer": "galore_adafactor"}, {"precision": "fp32"}, kind="warn"),
    Case(
        "galore-fp32",
        {"optimizer": "galore_adafactor", "precision": "fp32"},
        {"optimizer": "apollo_adamw"},
        kind="warn",
    ),
    Case("muon-adapter", {"optimizer": "muon", "adapter": "ia3"}, {"adapter": "lora"}),
    Case("muon-adapter", {"optimizer": "muon", "adapter": "oft"}, {"optimizer": "sgd"}),
    Case("muon-zero", {"optimizer": "muon", "offload": "zero2_optimizer"}, {"optimizer": "sgd"}),
    Case("schedule-free-zero", {"optimizer": "schedule_free_sgd", "offload": "zero2_optimizer"}, {"optimizer": "sgd"}),
    Case("lora-paged", {"optimizer": "paged_lion_32bit", "adapter": "lora"}, {"optimizer": "lion_32bit"}, kind="warn"),
    Case("lora-paged", {"optimizer": "adamw_torch_4bit", "adapter": "lora"}, {"optimizer": "sgd"}, kind="warn"),
    Case("layerwise-clip", {"optimizer": "sgd_layerwise", "max_grad_norm": 1.0}, {"optimizer": "sgd"}),
    *(
        Case("fp16-full-adamw", {"optimizer": name, "precision": "fp16"}, {space: {"eps": 1e-4}})
        for name, space in {
            "adamw_torch_8bit": "torchao",
            "apollo_adamw": "apollo",
            "muon": "muon",
            "stable_adamw": "stable_adamw",
            "schedule_free_adamw": "schedule_free_adamw",
            "rmsprop": "rmsprop",
            "adagrad": "adagrad",
        }.items()
    ),
    *(
        Case("fp16-full-adamw", {"optimizer": "adamw_torch", "precision": "fp16"}, {"optimizer": name})
        for name in ("paged_adamw_32bit", "lion_32bit", "ademamix_8bit", "sgd", "schedule_free_sgd", "galore_adafactor")
    ),
    Case(
        "layerwise-multi-backward", {**LAYERWISE, "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1}
    ),
    Case("layerwise-multi-backward", {**LAYERWISE, "gradient_accumulation_steps": 2}, {"optimizer": "galore_adamw"}),
    Case("layerwise-clip", {**LAYERWISE, "max_grad_norm": 1.0}, {"max_grad_norm": 0}),
    Case("layerwise-clip", {**LAYERWISE, "precision": "fp16_amp"}, {"precision": "bf16_amp"}, alone=False),
    Case("layerwise-zero", {**LAYERWISE, "offload": "zero2_optimizer"}, {"offload": "none"}, alone=False),
    Case("cuda-only", {"optimizer": "galore_adamw_8bit"}, {}, near_device="cuda"),
    Case("cuda-only", {"optimizer": "galore_adamw_8bit"}, {"optimizer": "adamw_bnb_8bit"}),
    Case(
        "fp16-unscaled",
        {"precision": "fp16_amp", "adapter": "lora", "adapter_dtype": "fp16", "optimizer": "adafactor"},
        {"adapter_dtype": "fp32"},
    ),
    Case("fp16-full-adamw", {"precision": "fp16"}, {"optimizer": "adamw_bnb_8bit"}),
    Case("fp16-full-adamw", {"precision": "fp16", "adapter": "lora", "algorithm": "reward"}, {"algorithm": "dpo"}),
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
    Case("torchao-clip", TORCHAO | {"max_grad_norm": 1}, {"max_grad_norm": 0}, device="cuda", near_device="cuda"),
    Case(
        "torchao-clip",
        TORCHAO | {"precision": "fp16_amp"},
        {"precision": "bf16_amp"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "torchao-accumulation",
        TORCHAO | {"gradient_accumulation_steps": 2, "cpu_offload": {"offload_gradients": True}},
        {"cpu_offload": {}},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "torchao-layerwise",
        TORCHAO | LAYERWISE,
        {"offload": "none"},
        device="cuda",
        near_device="cuda",
        alone=False,
    ),
    Case(
        "torchao-8bit",
        TORCHAO | {"optimizer": "paged_adamw_8bit"},
        {"optimizer": "adamw_bnb_8bit"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "torchao-8bit",
        TORCHAO | {"optimizer": "galore_adamw"},
        {"optimizer": "adafactor"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "activations-twice",
        {"activation_offloading": True, "offload": "activations"},
        {"offload": "none"},
        device="cuda",
        near_device="cuda",
    ),
    Case("activations-cpu", {"offload": "activations"}, {}, near_device="cuda", kind="warn"),
    Case(
        "zero3-int8",
        {"precision": "int8", "adapter": "lora", "offload": "zero3_all"},
        {"precision": "nf4"},
        device="cuda",
        near_device="cuda",
        alone=False,
    ),
    Case(
        "zero3-int8",
        {"precision": "int8", "adapter": "lora", "offload": "zero3_optimizer"},
        {"offload": "zero2_optimizer"},
        device="cuda",
        near_device="cuda",
        alone=False,
    ),
    Case("value-adapter", {"algorithm": "ppo", "value": "adapter"}, {"adapter": "lora"}),
    Case("value-adapter", {"algorithm": "ppo", "value": "adapter"}, {"value": "separate"}),
    Case(
        "value-adapter-zero",
        {"algorithm": "ppo", "adapter": "lora", "value": "adapter", "offload": "zero2_optimizer"},
        {"offload": "none"},
        alone=False,
    ),
    Case(
        "zero3-reads-weights",
        {"adapter": "dora", "algorithm": "remax", "offload": "zero3_optimizer"},
        {"adapter": "lora"},
        alone=False,
    ),
    Case(
        "zero3-reads-weights",
        {"adapter": "dora", "precision": "nf4", "offload": "zero3_all"},
        {"offload": "zero2_optimizer"},
        alone=False,
    ),
    Case(
        "zero3-reads-weights",
        {"adapter": "dora", "algorithm": "ppo", "offload": "zero3_all"},
        {"algorithm": "sft"},
        alone=False,
    ),
    Case(
        "zero3-bare-parameters",
        {"adapter": "ia3", "algorithm": "ppo", "offload": "zero3_all"},
        {"algorithm": "dpo"},
        alone=False,
    ),
    Case(
        "zero3-bare-parameters",
        {"adapter": "vera", "algorithm": "rloo", "offload": "zero3_optimizer", "adapter_dtype": "bf16"},
        {"offload": "zero2_optimizer"},
        alone=False,
    ),
    Case("nothing-left", {"budget": "8GiB", "reserved_elsewhere": "8GiB"}, {"reserved_elsewhere": "7GiB"}),
    Case(
        "nothing-to-offload",
        {"algorithm": "remax", "adapter": "lora", "ref_reward_offload": True},
        {"reference": "copy"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "nothing-to-offload",
        {"algorithm": "ppo", "adapter": "lora", "ref_reward_offload": True},
        {"reward": "model"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "ref-reward-offload-int8",
        {"algorithm": "ppo", "adapter": "lora", "precision": "int8", "reference": "copy", "ref_reward_offload": True},
        {"precision": "nf4"},
        device="cuda",
        near_device="cuda",
    ),
    Case(
        "ref-reward-offload-cpu",
        {"algorithm": "ppo", "ref_reward_offload": True},
        {},
        near_device="cuda",
        kind="warn",
    ),
    Case(
        "empty-cache-cpu",
        {"algorithm": "ppo", "empty_cache_between_phases": True},
        {"empty_cache_between_phases": False},
        kind="warn",
    ),
    Case(
        "merge-zero3",
        {"adapter": "lora", "save": "merged", "offload": "zero3_all"},
        {"save": "model"},
        alone=False,
    ),
    Case("zero-options", {"offload": "zero2_optimizer", "zero": {"sub_group_size": 9}}, {"offload": "zero3_all"}),
    Case(
        "zero-options", {"offload": "zero2", "zero": {"pin_memory": False}}, {"offload": "zero2_optimizer"}, alone=False
    ),
    Case("zero-shards-nothing", {"offload": "zero2"}, {"offload": "zero2_optimizer"}, kind="warn"),
    Case(
        "zero3-qlora",
        {"adapter": "lora", "precision": "nf4", "offload": "zero3_all"},
        {"precision": "bf16"},
        kind="warn",
        alone=False,
    ),
    Case("zero3-rollout", {"algorithm": "remax", "offload": "zero3_all"}, {"offload": "zero3_optimizer"}, kind="warn"),
    Case("zero3-rollout", {"algorithm": "ppo", "offload": "zero3_all"}, {"algorithm": "sft"}, kind="warn"),
    Case("zero-amp", {"precision": "fp16_amp", "offload": "zero2_optimizer"}, {"offload": "none"}, device="cuda"),
    Case("fp32-flash", {"precision": "fp32", "attention": "flash"}, {"attention": "efficient"}),
    Case("fp32-flash", {"precision": "fp32", "attention": "flash"}, {"precision": "bf16_amp"}, device="meta"),
    Case("reference-adapter-off", {"algorithm": "ppo", "reference": "adapter_off"}, {"adapter": "lora"}),
    Case("reference-adapter-off", {"algorithm": "ppo", "reference": "adapter_off"}, {"reference": "copy"}),
    Case("reentrant-alone", {"use_reentrant": True}, {"gradient_checkpointing": True}),
    Case(
        "activation-offloading-zero",
        {"activation_offloading": True, "offload": "zero2_optimizer"},
        {"activation_offloading": False},
        device="cuda",
    ),
    Case(
        "activation-offloading-zero",
        {"activation_offloading": True, "offload": "zero2_optimizer"},
        {"offload": "none"},
        device="cuda",
    ),
    Case("activation-offloading-cpu", {"activation_offloading": True}, {}, near_device="cuda", kind="warn"),
    Case("empty-cache-cpu", {"torch_empty_cache_steps": 1}, {}, near_device="cuda", kind="warn"),
    Case("empty-cache-cpu", {"torch_empty_cache_steps": 1}, {"torch_empty_cache_steps": 0}, kind="warn"),
    Case("unknown-layers", {"adapter": "lora", "lora_target_modules": ["q_prj"]}, {"lora_target_modules": ["q_proj"]}),
    Case("unknown-layers", {"adapter": "ia3", "lora_target_modules": ".*q_prj"}, {"lora_target_modules": ".*q_proj"}),
    Case("unknown-layers", {"adapter": "lora", "lora_target_modules": ["c_attn"]}, {"model": "tiny-gpt2"}),
    Case("lora-nothing", {"adapter": "lora", "lora_target_modules": []}, {"lora_target_modules": "all-linear"}),
    Case("lora-nothing", {"adapter": "lora", "lora_target_modules": []}, {"lora_target_parameters": ["q_proj.weight"]}),
    Case(
        "lora-parameters",
        {"adapter": "lora", "lora_target_parameters": ["experts.down_proj"], "lora_dropout": 0.1},
        {"lora_dropout": 0},
    ),
    Case("lora-parameters", {"adapter": "dora", "lora_target_parameters": ["experts.down_proj"]}, {"adapter": "lora"}),
    Case(
        "fp16-full-adamw",
        {"precision": "fp16", "adapter": "lora", "lora_modules_to_save": ["lm_head"]},
        {"lora_modules_to_save": []},
    ),
    Case("remax-greedy", {"algorithm": "remax", "remax": {"temperature": 0}}, {"remax": {"temperature": 0.5}}),
    Case("save-merged", {"save": "merged"}, {"save": "model"}),
    Case("save-merged", {"save": "merged"}, {"adapter": "lora"}),
    Case("save-as-nothing", {"save_as": "base"}, {"save": "model"}),
    Case("merge-16-bit", MERGE | {"precision": "int8"}, {"precision": "bf16"}),
    Case("merge-nothing", MERGE | {"adapter_weights": "initial"}, {"adapter_weights": "saved:sft"}),
    Case("merge-nothing", MERGE | {"save": "model"}, {"save": "merged"}),
    Case("merge-nothing", MERGE | {"adapter": "none"}, {"adapter": "lora"}, alone=False),
    Case(
        "merge-quantized",
        {"save": "merged", "precision": "nf4", "adapter": "adalora", "model": "tiny-gpt2"},
        {"adapter": "lora"},
    ),
    Case("adapter-widens", {"precision": "int8", "adapter": "adalora"}, {"precision": "bf16"}),
    Case("adapter-widens", {"precision": "int8", "adapter": "ia3"}, {"autocast": "bf16"}),
    Case("adapter-widens", {"precision": "int8", "adapter": "ia3"}, {"compute_dtype": "fp32"}),
    Case("adapter-widens", {"precision": "nf4", "adapter": "ia3", "model": "tiny-gpt2"}, {"adapter": "adalora"}),
    Case("adapter-schedule", {"adapter": "adalora", "offload": "zero2_optimizer"}, {"adapter": "vera"}, alone=False),
    Case(
        "value-adapter-schedule",
        {"adapter": "adalora", "algorithm": "ppo", "value": "adapter"},
        {"adapter": "vera"},
    ),
    Case("zero-buffers", {"adapter": "vera", "offload": "zero2_optimizer"}, {"adapter_dtype": "bf16"}, alone=False),
    Case(
        "virtual-tokens-one-row",
        {"adapter": "prompt_tuning", "padding_free": True, "lengths": {8: 1}},
        {"padding_free": False},
        alone=False,
    ),
    Case("virtual-tokens-narrow", {"adapter": "prompt_tuning", "model": "tiny-opt"}, {"model": "tiny-gpt2"}),
    Case(
        "reference-adapter-off",
        {
            "adapter": "peft:LoraConfig",
            "peft": {"init_lora_weights": "pissa"},
            "algorithm": "ppo",
            "reference": "adapter_off",
        },
        {"peft": {"init_lora_weights": "gaussian"}},
    ),
    Case("save-merged", {"save": "merged"}, {"adapter": "peft:LoKrConfig"}),
    Case("merge-quantized", {"save": "merged", "adapter": "prompt_tuning"}, {"adapter": "oft"}),
    Case("galore-adapter", {"adapter": "ia3", "optimizer": "galore_adamw"}, {"optimizer": "adafactor"}, alone=False),
    Case("too-long", {"prompt_tokens": 2000, "response_tokens": 49}, {"response_tokens": 48}),
    Case("too-long", {"model": "tiny-gpt2", "prompt_tokens": 1024}, {"model": "tiny-opt"}),
    Case("too-long", {"lengths": {64: 1}, "pad_to_multiple_of": 3000}, {"pad_to_multiple_of": 2048}, alone=False),
    Case("lengths-algorithm", {"algorithm": "ppo", "lengths": {64: 1}}, {"algorithm": "sft"}, alone=False),
    Case("lengths-algorithm", {"algorithm": "remax", "lengths": {64: 1}}, {"lengths": None}, alone=False),
    Case("lengths-none", {"padding_free": True}, {"lengths": {64: 0.5, 99: 0.5}}),
    Case("lengths-none", {"packing": "wrapped"}, {"packing": "none"}),
    Case("lengths-none", {"pad_to_multiple_of": 8}, {"lengths": {64: 0.5, 99: 0.5}}),
    Case(
        "lengths-attention",
        {"lengths": {64: 0.5, 99: 0.5}, "batch_size": 2, "attention": "flash", "precision": "bf16"},
        {"attention": "efficient"},
    ),
    Case(
        "lengths-attention",
        {"lengths": {64: 0.5, 99: 0.5}, "batch_size": 2, "attention": "flash", "precision": "bf16"},
        {"batch_size": 1},
    ),
    Case(
        "lengths-attention",
        {"lengths": {64: 1}, "packing": "bfd", "max_length": 99, "attention": "math"},
        {"packing": "none"},
    ),
    Case(
        "lengths-own-attention",
        {"lengths": {64: 1}, "padding_free": True, "model": BLOOM},
        {"padding_free": False},
        alone=False,
    ),
    Case(
        "lengths-own-attention",
        {"lengths": {64: 1}, "packing": "bfd", "max_length": 99, "model": BLOOM},
        {"packing": "wrapped"},
        alone=False,
    ),
    Case("attention-unable", {"model": GEMMA2, "attention": "flash"}, {"attention": "eager"}),
    Case("attention-unable", {"model": GEMMA2, "attention": "sdpa"}, {"attention": "auto"}, alone=False),
    Case("attention-unable", {"model": GEMMA2, "attention": "math"}, {"model": GEMMA3}),
    Case("attention-chunks", {"model": LLAMA4, "attention": "flash"}, {"attention": "efficient"}),
    Case("attention-chunks", {"model": LLAMA4, "attention": "math"}, {"prompt_tokens": 128, "response_tokens": 128}),
    Case("no-cache", {"model": RWKV, "algorithm": "ppo"}, {"algorithm": "sft"}, alone=False),
    Case("no-cache", {"model": RWKV, "algorithm": "remax"}, {"model": BLOOM}, alone=False),
    Case("flash-attn-cpu", {"attention": "flash_attention_2"}, {"attention": "flash"}),
    Case("flash-attn-cpu", {"attention": "flash_attention_2"}, {}, near_device="cuda"),
    Case("own-attention", {"model": BLOOM, "attention": "flash"}, {"model": LLAMA}, kind="warn"),
    Case("sdpa-kernel", {"model": GEMMA3, "attention": "sdpa"}, {"attention": "efficient"}, kind="warn"),
    Case(
        "sdpa-kernel", {"model": GEMMA3, "attention": "sdpa"}, {"prompt_tokens": 64, "response_tokens": 64}, kind="warn"
    ),
    Case("sdpa-kernel", {"precision": "fp32", "attention": "sdpa"}, {"precision": "bf16"}, kind="warn"),
    Case(
        "sdpa-kernel",
        {"precision": "fp16", "adapter": "lora", "attention": "sdpa"},
        {},
        "cuda",
        "cuda",
        "warn",
        bf16=False,
    ),
    Case("fp32-flash", {"precision": "fp32", "attention": "flash_attention_2"}, {"precision": "bf16"}, "cuda", "cuda"),
    Case("group-of-one", {"algorithm": "grpo", "group_size": 1}, {"group_size": 2}),
    Case("group-of-one", {"algorithm": "rloo", "group_size": 1}, {"algorithm": "ppo"}),
    Case("reference-unused", {"algorithm": "grpo", "reference": "copy"}, {"reference": "auto"}),
    Case("reference-unused", {"algorithm": "grpo", "reference": "copy"}, {"grpo": {"beta": 0.1}}),
    Case(
        "reference-unused",
        {"algorithm": "rloo", "adapter": "lora", "reference": "adapter_off", "rloo": {"beta": 0}},
        {"reference": "none"},
    ),
    Case(
        "k1-loss",
        {"algorithm": "reinforce", "reinforce": {"use_kl_loss": True}},
        {"reinforce": {"use_kl_loss": True, "kl_estimator": "k3"}},
        kind="warn",
    ),
    Case("k1-loss", {"algorithm": "ppo", "ppo": {"use_kl_loss": True}}, {"ppo": {}}, kind="warn"),
    Case("rollout-batch", {"algorithm": "grpo", "rollout_batch": 3, "batch_size": 16}, {"rollout_batch": 2}),
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
        "lora-offload",
        {"adapter": "lora", "offload": "zero3_optimizer"},
        {"offload": "zero3_all"},
        kind="warn",
        alone=False,
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


def named(said: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value["model_type"] if name == "model" and isinstance(value, dict) else value
        for name, value in said.items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {named(case.near) or case.near_device}")
def test_rule(case: Case, tmp_path: Path) -> None:
    found = check(cell_of(tmp_path, **case.hit), case.device, bf16=case.bf16)
    kinds = {finding.rule: finding.kind for finding in found}
    assert kinds.get(case.rule) == case.kind
    if case.alone:
        assert set(kinds) == {case.rule}
    near = check(cell_of(tmp_path, **{**case.hit, **case.near}), case.near_device, bf16=case.near_bf16)
    assert case.rule not in {finding.rule for finding in near}


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in RULES} | {"cuda-only"} == {case.rule for case in CASES}
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
    assert {finding.rule for finding in check(own, "cuda")} == {
        "layerwise-clip",
        "layerwise-zero",
        "zero-shards-nothing",
    }


@pytest.mark.usefixtures("own_values")
def test_a_value_that_needs_cuda_says_so_on_a_cpu() -> None:
    own = cell_of(optimizer="own_axis_values:CARD")
    (finding,) = check(own, "cpu")
    assert (finding.rule, finding.kind) == ("cuda-only", "reject")
    assert finding.reason == "own_axis_values:CARD runs on CUDA alone: its kernel is CUDA"
    assert check(own, "cuda") == check(own, "meta") == ()


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
