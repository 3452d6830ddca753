"""Rules of attention."""

from __future__ import annotations

import torch

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import (
    attends_by_own_code,
    autocast,
    beyond_chunks,
    chosen_kernels,
    longest_row,
    positions,
    product_dtype,
    said_by,
    unable_to_attend,
    unable_to_generate,
)

RULES: tuple[Rule, ...] = (
    Rule(
        "fp32-flash",
        "reject",
        "the flash attention kernel takes half precision only",
        lambda cell, _: (
            cell.workload.attention in ("flash", "flash_attention_2") and product_dtype(cell) == torch.float32
        ),
    ),
    Rule(
        "reference-flash",
        "reject",
        "the flash attention kernel takes half precision only, and without autocast a reference in fp32 has none (attention: sdpa)",
        lambda cell, _: (
            cell.workload.reference_dtype == "fp32"
            and cell.workload.attention in ("flash", "flash_attention_2")
            and autocast(cell) is None
        ),
    ),
    Rule(
        "lengths-attention",
        "reject",
        "PyTorch's flash and math kernels are pinned here without a mask, and batches of several lengths need one (attention: "
        "sdpa, flash_attention_2, efficient or eager)",
        lambda cell, _: cell.workload.masks and cell.workload.attention in ("flash", "math"),
    ),
    Rule(
        "lengths-own-attention",
        "reject",
        "the model's architecture attends by code of its own, which no positions tell where the sequences of a row end "
        "(padding_free: false, packing: none or wrapped)",
        lambda cell, _: (
            cell.workload.lengths is not None and cell.workload.one_row and attends_by_own_code(cell.workload.model)
        ),
    ),
    Rule(
        "too-long",
        "reject",
        "sequences are longer than the model has positions (max_position_embeddings)",
        lambda cell, _: longest_row(cell) > positions(cell.workload.model),
        lambda cell, _: f"{longest_row(cell):,} tokens{said_by(cell)}, {positions(cell.workload.model):,} positions",
    ),
    Rule(
        "attention-unable",
        "reject",
        "the model's architecture cannot attend as it is asked to (attention: auto takes what it can)",
        lambda cell, _: unable_to_attend(cell) is not None,
        lambda cell, _: f"{cell.workload.attention}, and it {unable_to_attend(cell)}",
    ),
    Rule(
        "attention-chunks",
        "reject",
        "sequences are longer than the chunks that layers of the model attend within, which only a mask can say: attention "
        "efficient, sdpa or eager",
        lambda cell, _: cell.workload.attention in ("flash", "math", "flash_attention_2") and beyond_chunks(cell),
    ),
    Rule(
        "no-cache",
        "reject",
        "the algorithm generates, and the model's architecture cannot here",
        lambda cell, _: unable_to_generate(cell) is not None,
        lambda cell, _: f"it {unable_to_generate(cell)}",
    ),
    Rule(
        "flash-attn-cpu",
        "reject",
        "the flash-attn package runs on CUDA alone (attention: flash is the same kernel, as PyTorch has it)",
        lambda cell, target: target.kind == "cpu" and cell.workload.attention == "flash_attention_2",
    ),
    Rule(
        "flash-hardware",
        "reject",
        "this device has no flash attention, which needs compute capability 8.0 (attention: auto takes the efficient kernel here)",
        lambda cell, target: not target.bf16 and cell.workload.attention in ("flash", "flash_attention_2"),
    ),
    Rule(
        "own-attention",
        "warn",
        "the model's architecture attends by code of its own, or not at all: its attention is eager, whatever is asked for",
        lambda cell, _: attends_by_own_code(cell.workload.model),
    ),
    Rule(
        "sdpa-kernel",
        "warn",
        "sdpa does not use PyTorch's flash kernel in every layer",
        lambda cell, target: any(choice.why for choice in chosen_kernels(cell, target.capability)),
        lambda cell, target: "; ".join(
            f"{choice.kernel}, since there is {choice.why}"
            for choice in chosen_kernels(cell, target.capability)
            if choice.why
        ),
    ),
)
