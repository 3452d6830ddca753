"""Five architectures at a size where a training step on a CPU takes milliseconds, over the 256 byte values."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset

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

TINY: dict[str, Preset] = {
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
}
