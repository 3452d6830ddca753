"""Model shapes by name, so that a job needs neither a download nor a network.

    config = PRESETS["llama-2-7b"].config()

Each preset is the published configuration of its model, as transformers' own configuration class reads it; the `tiny`
ones are those architectures at a size where a training step on a CPU takes milliseconds, over the 256 byte values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


@dataclass(frozen=True)
class Preset:
    """`architecture`: transformers' `model_type`. `shape`: the fields that differ from its class's defaults."""

    architecture: str
    shape: Mapping[str, Any]

    def config(self) -> PreTrainedConfig:
        """A fresh configuration, which the caller may change."""
        return AutoConfig.for_model(self.architecture, **self.shape)


# Every byte is a token of text, so none is left to mean an end or a gap.
NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    **NO_SPECIAL_TOKENS,
}

PRESETS: dict[str, Preset] = {
    "tiny": Preset("llama", TINY_LLAMA),
    "tiny-gpt2": Preset(
        "gpt2",
        {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, **NO_SPECIAL_TOKENS},
    ),
    "tiny-opt": Preset(
        "opt",
        {
            "vocab_size": 256,
            "hidden_size": 64,
            # Narrower embeddings, as OPT-350m has them: hidden states pass a projection before the head.
            "word_embed_proj_dim": 32,
            "ffn_dim": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 2048,
            **NO_SPECIAL_TOKENS,
        },
    ),
    "tiny-neox": Preset(
        "gpt_neox",
        {
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 2048,
            **NO_SPECIAL_TOKENS,
        },
    ),
    "tiny-mistral": Preset("mistral", TINY_LLAMA | {"sliding_window": 1024}),
    "gpt2": Preset("gpt2", {}),
    "opt-1.3b": Preset(
        "opt",
        {
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
        },
    ),
    # GaLore's configs/llama_1b.json; its padding token -1 is none.
    "llama-1b": Preset(
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 5461,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "max_position_embeddings": 1024,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "llama-3.2-3b": Preset(
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "llama-2-7b": Preset("llama", {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "llama-2-13b": Preset(
        "llama",
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    ),
    "mistral-7b": Preset("mistral", {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}),
    "gpt-neox-20b": Preset("gpt_neox", {"hidden_act": "gelu_fast", "bos_token_id": 0, "eos_token_id": 0}),
}
