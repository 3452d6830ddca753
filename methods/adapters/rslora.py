"""Rank-stabilised LoRA through PEFT: LoRA whose product is multiplied by alpha / sqrt(r) instead of alpha / r. It is adapter lora
with `use_rslora: true`, under the name that people know.

Source: Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv 2312.03732.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vrambench.methods.adapters.lora import LORA, attach

RSLORA = replace(
    LORA,
    summary="LoRA multiplied by lora_alpha / sqrt(lora_r): lora with use_rslora, whatever that field says (PEFT)",
    attach=partial(attach, use_rslora=True),
    fields=tuple(name for name in LORA.fields if name != "use_rslora"),
)
