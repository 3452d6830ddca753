"""Adapters as they are configured in practice: the job traced on the CPU and on the simulated device allocates the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.predict.test_equality import differences, traced
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

SIZES: dict[str, Any] = {"model": "tiny", "batch_size": 2, "prompt_tokens": 8, "response_tokens": 8, "rollout_batch": 2}
WHOLE = {"lora_modules_to_save": "embed_tokens,lm_head"}
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CELLS: dict[str, dict[str, Any]] = {
    "whole modules": WHOLE,
    "whole modules beside nf4": WHOLE | {"precision": "nf4"},
    "whole modules with autocast": WHOLE | {"precision": "bf16_amp"},
    "whole modules and 8-bit moments": WHOLE | {"optimizer": "adamw_bnb_8bit"},
    "whole modules and ppo": WHOLE
    | {"algorithm": "ppo", "response_tokens": 2, "value": "separate", "ppo": {"epochs": 1}},
    "a tied module": {"model": "tiny-gpt2", "lora_modules_to_save": "wte", "precision": "fp32"},
    "norms": {"lora_modules_to_save": "layernorm", "adapter": "dora", "gradient_checkpointing": True},
    "rank-stabilised, with dropout": {"use_rslora": True, "lora_dropout": 0.1, "lora_target_modules": "all-linear"},
    "a regular expression": {"lora_target_modules": r"model\.layers\.\d+\.mlp\..*_proj"},
    "rslora on Conv1D": {"adapter": "rslora", "model": "tiny-gpt2", "precision": "fp32"},
    "ia3": {"adapter": "ia3", "model": "tiny-gpt2", "precision": "fp32"},
    "ia3 and ppo": {"adapter": "ia3", "algorithm": "ppo", "response_tokens": 2, "ppo": {"epochs": 1}},
    "ia3 with autocast on nf4": {"adapter": "ia3", "precision": "nf4", "autocast": "bf16"},
    "adalora": {"adapter": "adalora", "precision": "fp32"},
    "adalora beside nf4": {"adapter": "adalora", "precision": "nf4", "gradient_checkpointing": True},
    "adalora and ppo": {"adapter": "adalora", "algorithm": "ppo", "response_tokens": 2, "ppo": {"epochs": 1}},
    "adalora at its end": {"adapter": "adalora", "adalora": {"total_step": 2, "tfinal": 1}},
    "vera": {"adapter": "vera", "lora_target_modules": "all-linear", "gradient_checkpointing": True},
    "vera with its merged weights": {"adapter": "vera", "save": "merged"},
    "vera beside nf4, and ppo": {
        "adapter": "vera",
        "precision": "nf4",
        "algorithm": "ppo",
        "response_tokens": 2,
        "ppo": {"epochs": 1},
    },
    "oft": {"adapter": "oft", "gradient_checkpointing": True, "use_reentrant": True},
    "oft solved for": {"adapter": "oft", "oft": {"use_cayley_neumann": False, "coft": True}, "precision": "fp32"},
    "virtual tokens": {"adapter": "prompt_tuning", "gradient_checkpointing": True, "use_reentrant": True},
    "virtual tokens and all logits": {
        "adapter": "prompt_tuning",
        "loss": "nll",
        "eval_batch_size": 2,
        "max_eval_samples": 2,
    },
    "virtual tokens and ppo": {
        "adapter": "prompt_tuning",
        "algorithm": "ppo",
        "response_tokens": 2,
        "value": "separate",
        "ppo": {"epochs": 1},
    },
    "one by its configuration": {"adapter": "peft:LoKrConfig", "peft": {"r": 4}},
    # Of the whole SVD it keeps a view of CUDA's rows, and a copy of the CPU's columns.
    "orthogonal in a subspace": {"adapter": "peft:PsoftConfig", "peft": {"psoft_svd": "lowrank"}},
    "generalised": {"adapter": "peft:GloraConfig", "gradient_checkpointing": True},
    "shared by layers": {"adapter": "peft:LilyConfig", "algorithm": "ppo", "response_tokens": 2, "ppo": {"epochs": 1}},
    "of a few numbers": {
        "adapter": "peft:TinyLoraConfig",
        "peft": {"u": 16},
        "algorithm": "ppo",
        "response_tokens": 2,
        "ppo": {"epochs": 1},
    },
    "from a bank of vectors": {
        "adapter": "peft:VBLoRAConfig",
        "peft": {"vector_length": 16},
        "gradient_checkpointing": True,
    },
    # It keeps its places on the host, and copies them in each pass.
    "wavelets": {"adapter": "peft:WaveFTConfig", "peft": {"n_frequency": 3}},
    "wavelets beside nf4": {"adapter": "peft:WaveFTConfig", "peft": {"n_frequency": 3}, "precision": "nf4"},
    "prompts within attention": {
        "adapter": "peft:AdaptionPromptConfig",
        "peft": {"adapter_len": 4, "adapter_layers": 2},
        "adapter_dtype": "bf16",
    },
    "prompts within attention beside nf4, and ppo": {
        "adapter": "peft:AdaptionPromptConfig",
        "peft": {"adapter_len": 4, "adapter_layers": 1},
        "precision": "nf4",
        "algorithm": "ppo",
        "response_tokens": 2,
        "ppo": {"epochs": 1},
    },
    "pissa": {"adapter": "peft:LoraConfig", "peft": {"r": 4, "init_lora_weights": "pissa"}},
    "experts": {"model": "mixtral", "lora_target_parameters": "mlp.experts.gate_up_proj,mlp.experts.down_proj"},
    "experts as all linear layers": {
        "model": "mixtral",
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": True,
    },
}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("mixtral")
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    return str(folder)


@pytest.mark.parametrize("name", CELLS)
def test_the_simulated_job_allocates_what_the_real_one_does(name: str, mixtral: str) -> None:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    settings = SIZES | {key: value for key, value in CELLS[name].items() if key not in axes}
    if settings["model"] == "mixtral":
        settings["model"] = mixtral
    cell = resolve(axes | {key: value for key, value in CELLS[name].items() if key in axes}, settings)
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    allowed = 0.002 * real.peak_bytes() + (4096 if cell.optimizer_value.eight_bit else 0)
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= allowed
    assert not differences(cell, real, simulated)
