"""Models of which few have one architecture."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset, rotary, sizes

PHI_3 = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144}
STARCODER2 = {
    "max_position_embeddings": 16384,
    "sliding_window": 4096,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OLMO2: dict[str, Any] = {
    "vocab_size": 100352,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 100257,
    "pad_token_id": 100277,
    "rope_parameters": rotary(500000.0),
}
GRANITE: dict[str, Any] = {
    "vocab_size": 49159,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": rotary(10000000.0),
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
}

OTHERS: dict[str, Preset] = {
    "gpt2": Preset("gpt2", {}, "openai-community/gpt2"),
    "opt-1.3b": Preset(
        "opt",
        {
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
        },
        "facebook/opt-1.3b",
    ),
    "gpt-neox-20b": Preset(
        "gpt_neox", {"hidden_act": "gelu_fast", "bos_token_id": 0, "eos_token_id": 0}, "EleutherAI/gpt-neox-20b"
    ),
    "phi-3-mini": Preset("phi3", {"sliding_window": 2047}, "microsoft/Phi-3-mini-4k-instruct", "2026-11"),
    "phi-3.5-mini": Preset("phi3", PHI_3, "microsoft/Phi-3.5-mini-instruct", "2026-11"),
    "phi-4": Preset(
        "phi3",
        sizes(5120, 17920, 40, 40, 10)
        | {"vocab_size": 100352, "max_position_embeddings": 16384, "original_max_position_embeddings": 16384}
        | {"rope_parameters": rotary(250000.0)}
        | {"bos_token_id": 100257, "eos_token_id": 100265, "pad_token_id": 100349},
        "microsoft/phi-4",
        "2026-11",
    ),
    "phi-4-mini": Preset(
        "phi3",
        PHI_3
        | sizes(3072, 8192, 32, 24, 8)
        | {"vocab_size": 200064, "tie_word_embeddings": True}
        | {"rope_parameters": rotary(10000.0, partial_rotary_factor=0.75)}
        | {"bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999},
        "microsoft/Phi-4-mini-instruct",
        "2026-11",
    ),
    "gpt-oss-20b": Preset(
        "gpt_oss",
        {"num_hidden_layers": 24, "num_local_experts": 32, "router_aux_loss_coef": 0.9}
        | {"eos_token_id": 200002, "pad_token_id": 199999},
        "openai/gpt-oss-20b",
        "2026-11",
    ),
    "smollm3-3b": Preset(
        "smollm3",
        {"max_position_embeddings": 65536, "rope_parameters": rotary(5000000.0), "eos_token_id": 128012},
        "HuggingFaceTB/SmolLM3-3B",
        "2026-11",
    ),
    "olmo-2-1b": Preset("olmo2", OLMO2 | sizes(2048, 8192, 16, 16, 16), "allenai/OLMo-2-0425-1B", "2026-11"),
    "olmo-2-7b": Preset("olmo2", OLMO2, "allenai/OLMo-2-1124-7B", "2026-11"),
    "olmo-2-13b": Preset("olmo2", OLMO2 | sizes(5120, 13824, 40, 40, 40), "allenai/OLMo-2-1124-13B", "2026-11"),
    "deepseek-v2-lite": Preset(
        "deepseek_v2",
        sizes(2048, 10944, 27, 16, 16)
        | {"max_position_embeddings": 163840, "bos_token_id": 100000, "eos_token_id": 100001}
        | {"q_lora_rank": None, "first_k_dense_replace": 1, "moe_intermediate_size": 1408, "num_experts_per_tok": 6}
        | {"n_group": 1, "topk_group": 1}
        | {
            "rope_parameters": rotary(
                10000.0,
                rope_type="yarn",
                factor=40,
                beta_fast=32,
                beta_slow=1,
                mscale=0.707,
                mscale_all_dim=0.707,
                original_max_position_embeddings=4096,
            )
        },
        "deepseek-ai/DeepSeek-V2-Lite",
        "2026-11",
    ),
    "glm-4-9b": Preset("glm", {"max_position_embeddings": 8192}, "zai-org/glm-4-9b-hf", "2026-11"),
    "falcon-7b": Preset("falcon", {}, "tiiuae/falcon-7b", "2026-11"),
    "starcoder2-3b": Preset(
        "starcoder2", STARCODER2 | {"rope_parameters": rotary(999999.4420358813)}, "bigcode/starcoder2-3b", "2026-11"
    ),
    "starcoder2-7b": Preset(
        "starcoder2",
        STARCODER2 | sizes(4608, 18432, 32, 36, 4) | {"rope_parameters": rotary(1000000.0)},
        "bigcode/starcoder2-7b",
        "2026-11",
    ),
    "starcoder2-15b": Preset(
        "starcoder2",
        STARCODER2
        | sizes(6144, 24576, 40, 48, 4)
        | {"rope_parameters": rotary(100000.0), "tie_word_embeddings": False},
        "bigcode/starcoder2-15b",
        "2026-11",
    ),
    "granite-3.3-2b": Preset(
        "granite",
        GRANITE | sizes(2048, 8192, 40, 32, 8) | {"attention_multiplier": 0.015625, "logits_scaling": 8.0},
        "ibm-granite/granite-3.3-2b-base",
        "2026-11",
    ),
    "granite-3.3-8b": Preset(
        "granite",
        GRANITE | sizes(4096, 12800, 40, 32, 8) | {"attention_multiplier": 0.0078125, "logits_scaling": 16.0},
        "ibm-granite/granite-3.3-8b-base",
        "2026-11",
    ),
}
