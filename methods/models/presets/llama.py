"""Models of Llama's architecture: Meta's, and those that others made alike."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset, rotary, sizes


def _llama_3(factor: float, *, tied: bool = False) -> dict[str, Any]:
    """Llama 3.1 and later. `factor`: how many times longer sequences are than those of pre-training."""
    return {
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_parameters": rotary(
            500000.0,
            rope_type="llama3",
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    }


LLAMA_2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "rope_parameters": rotary(500000.0),
} | sizes(4096, 14336, 32, 32, 8)
LLAMA_8B = _llama_3(8.0) | sizes(4096, 14336, 32, 32, 8)
LLAMA_70B = _llama_3(8.0) | sizes(8192, 28672, 80, 64, 8)
SMOLLM2 = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
YI = {"vocab_size": 64000, "max_position_embeddings": 4096}

LLAMA: dict[str, Preset] = {
    # Its padding token -1 is none.
    "llama-1b": Preset(
        "llama",
        sizes(2048, 5461, 24, 32, 32) | {"max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 1},
        "configs/llama_1b.json of jiaweizzhao/GaLore",
    ),
    "llama-2-7b": Preset("llama", LLAMA_2, "meta-llama/Llama-2-7b-hf"),
    "llama-2-13b": Preset("llama", LLAMA_2 | sizes(5120, 13824, 40, 40, 40), "meta-llama/Llama-2-13b-hf"),
    "llama-3-8b": Preset("llama", LLAMA_3_8B, "meta-llama/Meta-Llama-3-8B-Instruct", "2026-11"),
    "llama-3.1-8b": Preset("llama", LLAMA_8B, "meta-llama/Llama-3.1-8B", "2026-11"),
    "llama-3.1-70b": Preset("llama", LLAMA_70B, "meta-llama/Llama-3.1-70B", "2026-11"),
    "llama-3.2-1b": Preset(
        "llama",
        _llama_3(32.0, tied=True) | sizes(2048, 8192, 16, 32, 8) | {"head_dim": 64},
        "meta-llama/Llama-3.2-1B",
        "2026-11",
    ),
    "llama-3.2-3b": Preset(
        "llama",
        _llama_3(32.0, tied=True) | sizes(3072, 8192, 28, 24, 8) | {"head_dim": 128},
        "meta-llama/Llama-3.2-3B",
        "2026-11",
    ),
    "llama-3.3-70b": Preset("llama", LLAMA_70B, "meta-llama/Llama-3.3-70B-Instruct", "2026-11"),
    "deepseek-r1-distill-llama-8b": Preset("llama", LLAMA_8B, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "2026-11"),
    "deepseek-r1-distill-llama-70b": Preset("llama", LLAMA_70B, "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "2026-11"),
    "tinyllama-1.1b": Preset(
        "llama",
        sizes(2048, 5632, 22, 32, 4) | {"rms_norm_eps": 1e-5},
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "2026-11",
    ),
    "smollm2-135m": Preset(
        "llama",
        SMOLLM2 | sizes(576, 1536, 30, 9, 3) | {"rope_parameters": rotary(100000.0)},
        "HuggingFaceTB/SmolLM2-135M",
        "2026-11",
    ),
    "smollm2-360m": Preset(
        "llama",
        SMOLLM2 | sizes(960, 2560, 32, 15, 5) | {"rope_parameters": rotary(100000.0)},
        "HuggingFaceTB/SmolLM2-360M",
        "2026-11",
    ),
    "smollm2-1.7b": Preset(
        "llama",
        SMOLLM2 | sizes(2048, 8192, 24, 32, 32) | {"rope_parameters": rotary(130000.0)},
        "HuggingFaceTB/SmolLM2-1.7B",
        "2026-11",
    ),
    "yi-6b": Preset(
        "llama",
        YI | sizes(4096, 11008, 32, 32, 4) | {"rms_norm_eps": 1e-5, "rope_parameters": rotary(5000000.0)},
        "01-ai/Yi-6B",
        "2026-11",
    ),
    "yi-9b": Preset("llama", YI | sizes(4096, 11008, 48, 32, 4), "01-ai/Yi-9B", "2026-11"),
    "yi-34b": Preset(
        "llama",
        YI | sizes(7168, 20480, 60, 56, 8) | {"rms_norm_eps": 1e-5, "rope_parameters": rotary(5000000.0)},
        "01-ai/Yi-34B",
        "2026-11",
    ),
}
