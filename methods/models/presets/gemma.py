"""Gemma's language models. Those of 4B and 12B are the text part of models that also see images."""

from __future__ import annotations

from typing import Any

from vrambench.methods.models.presets.preset import Preset, rotary, sizes


def _gemma_3(vocabulary: int, window: int, length: int, **scaling: Any) -> dict[str, Any]:
    """Five layers that see `window` tokens, then one that sees all."""
    return {
        "vocab_size": vocabulary,
        "head_dim": 256,
        "sliding_window": window,
        "max_position_embeddings": length,
        "rope_parameters": {
            "sliding_attention": rotary(10000.0),
            "full_attention": rotary(1000000.0, **scaling),
        },
    }


WITH_IMAGES = _gemma_3(262208, 1024, 131072, rope_type="linear", factor=8.0)

GEMMA: dict[str, Preset] = {
    "gemma-2-2b": Preset("gemma2", {}, "google/gemma-2-2b", "2026-11"),
    "gemma-2-9b": Preset("gemma2", sizes(3584, 14336, 42, 16, 8), "google/gemma-2-9b", "2026-11"),
    "gemma-3-270m": Preset(
        "gemma3_text", _gemma_3(262144, 512, 32768) | sizes(640, 2048, 18, 4, 1), "google/gemma-3-270m", "2026-11"
    ),
    "gemma-3-1b": Preset(
        "gemma3_text", _gemma_3(262144, 512, 32768) | sizes(1152, 6912, 26, 4, 1), "google/gemma-3-1b-pt", "2026-11"
    ),
    "gemma-3-4b": Preset(
        "gemma3_text", WITH_IMAGES | sizes(2560, 10240, 34, 8, 4), "the text_config of google/gemma-3-4b-pt", "2026-11"
    ),
    "gemma-3-12b": Preset(
        "gemma3_text",
        WITH_IMAGES | sizes(3840, 15360, 48, 16, 8),
        "the text_config of google/gemma-3-12b-pt",
        "2026-11",
    ),
}
