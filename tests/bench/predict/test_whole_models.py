"""Whatever is traced with few layers is the whole model: its parameters and the bytes of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vrambench.bench.predict.simulate import Simulator
from vrambench.methods.cell import resolve

AXES = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
COMMON = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_hidden_layers": 9, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}

CASES: dict[str, dict[str, Any]] = {
    "alike": {"model_type": "llama"},
    "window and full": {"model_type": "gemma3_text", "sliding_window": 64},
    "dense first": {"model_type": "qwen3_moe", "mlp_only_layers": [0, 1, 2]} | EXPERTS,
    "one dense first": {"model_type": "qwen3_moe", "mlp_only_layers": [0]} | EXPERTS,
    "dense last": {"model_type": "qwen3_moe", "mlp_only_layers": [8]} | EXPERTS,
    "every other": {"model_type": "qwen3_moe", "decoder_sparse_step": 2} | EXPERTS,
    "experts": {"model_type": "mixtral"} | EXPERTS,
    "qwen2": {"model_type": "qwen2"},
    "olmo2": {"model_type": "olmo2"},
    "phi3": {"model_type": "phi3"},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 9, "n_head": 4},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
}


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_weights_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    values = COMMON | CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    sizes = {id(parameter): parameter.numel() for parameter in whole.parameters()}
    cell = resolve(AXES, {"model": str(tmp_path), "prompt_tokens": 8, "response_tokens": 8})
    simulation = Simulator().run(cell)
    assert simulation.parameters.total == sum(sizes.values())
    buffers = simulation.roles["policy"].weights_bytes - 2 * sum(sizes.values())
    assert 0 <= buffers < 64 * 1024, "rotary tables and the like"
    assert simulation.roles["policy"].gradients_bytes == 2 * sum(sizes.values())
