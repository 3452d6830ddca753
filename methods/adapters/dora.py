"""DoRA through PEFT: LoRA on the direction of each weight matrix, and its length by rows trained beside it,
y = m (W + (alpha / r) B A) x / |W + (alpha / r) B A|, with m = |W| at the start.

Every forward pass computes the norms anew, for which it holds the whole product B A, as large as W.
Source: Liu et al., DoRA, arXiv 2402.09353.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vrambench.methods.adapters.lora import LORA, attach

DORA = replace(
    LORA,
    summary="LoRA with the length of each weight's rows trained apart (PEFT)",
    attach=partial(attach, use_dora=True),
    reads_weights=True,
)
