"""Qwen's models, and those that others distilled into their shapes."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset, rotary, sizes


def _qwen2(vocabulary: int, length: int, *, tied: bool = False, eps: float = 1e-6) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "rope_parameters": rotary(1000000.0),
    }


def _qwen3(*, tied: bool = False) -> dict[str, Any]:
    return _qwen2(151936, 40960, tied=tied) | {"head_dim": 128, "eos_token_id": 151645}


QWEN2_14B = _qwen2(152064, 131072, eps=1e-5) | sizes(5120, 13824, 48, 40, 8)
QWEN2_32B = _qwen2(152064, 131072, eps=1e-5) | sizes(5120, 27648, 64, 40, 8)
# Qwen2.5-Math's rotary base, from whose models the two smallest distillations began.
QWEN2_MATH = {"rope_parameters": rotary(10000.0)}

QWEN: dict[str, Preset] = {
    "qwen2.5-0.5b": Preset(
        "qwen2", _qwen2(151936, 32768, tied=True) | sizes(896, 4864, 24, 14, 2), "Qwen/Qwen2.5-0.5B", "2026-11"
    ),
    "qwen2.5-1.5b": Preset(
        "qwen2", _qwen2(151936, 131072, tied=True) | sizes(1536, 8960, 28, 12, 2), "Qwen/Qwen2.5-1.5B", "2026-11"
    ),
    "qwen2.5-3b": Preset(
        "qwen2", _qwen2(151936, 32768, tied=True) | sizes(2048, 11008, 36, 16, 2), "Qwen/Qwen2.5-3B", "2026-11"
    ),
    "qwen2.5-7b": Preset("qwen2", _qwen2(152064, 131072) | sizes(3584, 18944, 28, 28, 4), "Qwen/Qwen2.5-7B", "2026-11"),
    "qwen2.5-14b": Preset("qwen2", QWEN2_14B, "Qwen/Qwen2.5-14B", "2026-11"),
    "qwen2.5-32b": Preset("qwen2", QWEN2_32B, "Qwen/Qwen2.5-32B", "2026-11"),
    "deepseek-r1-distill-qwen-1.5b": Preset(
        "qwen2",
        _qwen2(151936, 131072) | sizes(1536, 8960, 28, 12, 2) | QWEN2_MATH,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "2026-11",
    ),
    "deepseek-r1-distill-qwen-7b": Preset(
        "qwen2",
        _qwen2(152064, 131072) | sizes(3584, 18944, 28, 28, 4) | QWEN2_MATH,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "2026-11",
    ),
    "deepseek-r1-distill-qwen-14b": Preset("qwen2", QWEN2_14B, "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "2026-11"),
    "deepseek-r1-distill-qwen-32b": Preset("qwen2", QWEN2_32B, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "2026-11"),
    "qwen3-0.6b": Preset("qwen3", _qwen3(tied=True) | sizes(1024, 3072, 28, 16, 8), "Qwen/Qwen3-0.6B", "2026-11"),
    "qwen3-1.7b": Preset("qwen3", _qwen3(tied=True) | sizes(2048, 6144, 28, 16, 8), "Qwen/Qwen3-1.7B", "2026-11"),
    "qwen3-4b": Preset("qwen3", _qwen3(tied=True) | sizes(2560, 9728, 36, 32, 8), "Qwen/Qwen3-4B", "2026-11"),
    "qwen3-8b": Preset("qwen3", _qwen3() | sizes(4096, 12288, 36, 32, 8), "Qwen/Qwen3-8B", "2026-11"),
    "qwen3-14b": Preset("qwen3", _qwen3() | sizes(5120, 17408, 40, 40, 8), "Qwen/Qwen3-14B", "2026-11"),
    "qwen3-32b": Preset("qwen3", _qwen3() | sizes(5120, 25600, 64, 64, 8), "Qwen/Qwen3-32B", "2026-11"),
    "qwen3-30b-a3b": Preset(
        "qwen3_moe",
        _qwen3()
        | sizes(2048, 6144, 48, 32, 4)
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
        "Qwen/Qwen3-30B-A3B",
        "2026-11",
    ),
}
