"""A tiny configuration of every causal language model that transformers knows.

    config = tiny("qwen3_moe")          what its config.json holds: model_type, and the sizes that differ from the class's defaults

Sizes are told by their names: whatever the architecture calls its width, its layers or its experts is made small; a list with an
entry for each layer is left out, so that the architecture makes it anew. Where that gives no model, EXCEPTIONS says what does.
"""

from __future__ import annotations

import re
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS = 6
"""More than a prediction builds, so that it has layers to repeat."""

SIZES: tuple[tuple[str, int], ...] = (
    (r"token_(id|index)$", 0),
    (r"(^|_)vocab_size(_|$)|_vocab$", 256),
    (r"(num|n)_(\w+_)?layers?$|(en|de)coder_layers$|^depth$|^num_blocks$|^n_layer$", LAYERS),
    (r"experts$|^zero_expert_num$", 4),
    (r"experts_per_tok(en)?$|^moe_(k|topk)$", 2),
    (r"n_groups?$|_groups$|expert_group$", 2),
    (r"(kv|key_value|query)_(heads|groups)(_|$)", 2),
    (r"heads(_per_layer)?$|^n_head$", 4),
    (r"head_dim$|head_size$|headdim$|d_head$|dim_head$|kv_channels$|rotary_dim$", 16),
    (r"rank$|d_rel$", 16),
    (r"d_state$|state_size$|dt_rank$", 16),
    (r"moe_intermediate_size$|expert\w*_intermediate_size$|expert_ffn_hidden_size$", 64),
    (r"intermediate_size(_mlp)?$|ffn_dim$|ffn_hidden_size$|^(dim_ff|dff|d_inner|mlp_dim|feed_forward_size)$", 128),
    (r"hidden_size(_|$)|^(d_model|n_embd|emb_dim)$|embed\w*_(size|dim)$|proj_dim$|^lru_width$|d_ssm$|_dim$", 64),
    (r"chunk_size$|block_size$|index_topk$", 16),
)
"""What a whole number is made where it is larger, by the first of these that its name matches."""

COMPUTED = ("qk_head_dim",)
"""Sizes that a class computes of others."""

ROTARY = {"rope_type": "default", "rope_theta": 10000.0}

NO_INPUTS_OF_LAYERS = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}

OPEN: dict[str, dict[str, Any]] = {"gemma4_assistant": {"text_config": NO_INPUTS_OF_LAYERS}}
"""What a class must be told, since it refuses its own defaults."""

DOTS3 = {"head_dim": 32}
"""Its heads are as wide as their two parts."""

QWEN4_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16, "indexer_compress_ratio": 4,
}  # fmt: skip

DECODERS_IF_TOLD = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Read in both directions but for is_decoder: true in their config.json."""
DECODERS_WITHOUT_ENCODER = (
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart", "prophetnet",
    "whisper",
)  # fmt: skip
"""Have an encoder but for is_encoder_decoder: false in their config.json."""

EXCEPTIONS: dict[str, dict[str, Any]] = OPEN | {
    # What the class leaves open, and every published config.json says.
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROTARY, "sliding_attention": ROTARY}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    # One product must be another: heads times their size is twice the width.
    "bamba": {"mamba_d_head": 32},
    "granitemoehybrid": {"mamba_d_head": 32},
    "mamba2": {"head_dim": 32},
    # Layers are told by a pattern whose length is the number of layers.
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 10},
    "zamba2": {
        "hybrid_layer_ids": [2, 5],
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "mamba_headdim": 32,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "dots3_note": {"text_config": DOTS3, "audio_config": {"adapter_input_size": 64}},
    "dots3_note_text": DOTS3,
    # More than one expert in each group, of which a router takes the two best.
    "axk1": {"n_group": 1, "topk_group": 1},
    "beam": {"n_group": 1, "topk_group": 1},
    "deepseek_v3": {"n_group": 2, "topk_group": 1, "n_routed_experts": 8},
    "deepseek_v32": {"n_group": 2, "topk_group": 1, "n_routed_experts": 8},
    "bailing_hybrid": {"n_group": 2, "topk_group": 1, "num_experts": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [4, 4]},
    "zamba": {"num_hidden_layers": 10, "attention_hidden_size": 128, "attention_head_dim": 32},
    "qwen4_exp": {"text_config": QWEN4_INDEXER},
    "qwen4_exp_text": QWEN4_INDEXER,
    # Decoders only where they are told to be.
    **{name: {"is_decoder": True} for name in DECODERS_IF_TOLD},
    **{name: {"is_decoder": True, "is_encoder_decoder": False} for name in DECODERS_WITHOUT_ENCODER},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
}
"""What is not told by a size alone."""


def tiny(model_type: str) -> dict[str, Any]:
    """What the config.json of a tiny model of that type holds."""
    made = CONFIG_MAPPING[model_type](**OPEN.get(model_type, {}))
    return {"model_type": model_type} | merged(shrunk(made.to_dict()), EXCEPTIONS.get(model_type, {}))


def merged(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `more` in them, configurations inside them too."""
    nested = {name: merged(fields[name], value) for name, value in more.items() if isinstance(fields.get(name), dict)}
    return fields | more | nested


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of `config` that are larger than they have to be, made small; those of the configurations inside it too."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            fields[name] = {key: value[key] for key in ("model_type",) if key in value} | shrunk(value)
        elif name.endswith("token_id") and isinstance(value, list):
            fields[name] = 0
        elif isinstance(value, int) and not isinstance(value, bool) and name not in COMPUTED:
            small = next((size for pattern, size in SIZES if re.search(pattern, name)), value)
            if small < value and not (name.endswith("token_id") and value < 256):
                fields[name] = small
    if "kv_lora_rank" in config:  # latent attention has as many keys as queries
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    return fields
