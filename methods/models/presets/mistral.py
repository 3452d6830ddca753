"""Mistral's models, dense and with experts."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset, rotary, sizes

MISTRAL_7B = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
"""Of v0.1: it has a sliding window of 4096 tokens, the class's default."""


def _later(vocabulary: int, length: int, theta: float) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "head_dim": 128,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": rotary(theta),
    }


MISTRAL: dict[str, Preset] = {
    "mistral-7b": Preset("mistral", MISTRAL_7B, "mistralai/Mistral-7B-v0.1"),
    "mistral-7b-v0.1": Preset("mistral", MISTRAL_7B, "mistralai/Mistral-7B-v0.1", "2026-11"),
    "mistral-7b-v0.3": Preset("mistral", _later(32768, 32768, 1e6), "mistralai/Mistral-7B-v0.3", "2026-11"),
    "mistral-nemo-12b": Preset(
        "mistral",
        _later(131072, 128000, 1e6) | sizes(5120, 14336, 40, 32, 8),
        "mistralai/Mistral-Nemo-Base-2407",
        "2026-11",
    ),
    "mistral-small-24b": Preset(
        "mistral",
        _later(131072, 32768, 1e8) | sizes(5120, 32768, 40, 32, 8),
        "mistralai/Mistral-Small-24B-Base-2501",
        "2026-11",
    ),
    "ministral-8b": Preset(
        "mistral",
        _later(131072, 32768, 1e8) | sizes(4096, 12288, 36, 32, 8) | {"sliding_window": 32768},
        "mistralai/Ministral-8B-Instruct-2410",
        "2026-11",
    ),
    "mixtral-8x7b": Preset(
        "mixtral",
        {"max_position_embeddings": 32768, "router_aux_loss_coef": 0.02},
        "mistralai/Mixtral-8x7B-v0.1",
        "2026-11",
    ),
}
