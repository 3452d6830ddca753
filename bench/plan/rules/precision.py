"""Rules of precision: what is quantised, in which type the rest computes, and autocast."""

from __future__ import annotations

import torch

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import (
    autocast,
    cut_blocks,
    eps_too_small,
    fp32_vocabulary_bytes,
    full,
    loss_scaling,
    odd_widths,
    own_linear_weights,
    packs_experts,
    quantized,
    quantized_to,
    stacked_weights,
    trained_dtypes,
    upcast,
    uses_bf16,
    weight_dtype,
)
from vrambench.methods.cell import Cell
from vrambench.methods.dtypes import HALF


def stay_in_16_bit(cell: Cell, weights: int) -> str:
    """What so many weights take that are not quantised."""
    return (
        f"{weights * weight_dtype(cell).itemsize / 2**30:.1f} GiB of each model stay in {cell.workload.compute_dtype}"
    )


LARGE_VOCABULARY = 2**30
"""Bytes of embeddings and head in fp32 from which on they are told: those of 32,000 tokens stay below."""

RULES: tuple[Rule, ...] = (
    Rule(
        "quantized-full",
        "reject",
        "without an adapter a quantised model trains only its norms, embeddings and head, while the loss still falls",
        lambda cell, _: quantized(cell) and full(cell),
    ),
    Rule(
        "value-quantized",
        "reject",
        "without an adapter a separate value model on a quantised base trains only its norms, embeddings and head",
        lambda cell, _: cell.workload.value == "separate" and quantized(cell) and full(cell),
    ),
    Rule(
        "fp16-unscaled",
        "reject",
        "a loss scaler refuses to unscale gradients in fp16 (on CUDA in bf16 too), and weights trained in 16 bit have no others",
        lambda cell, _: loss_scaling(cell) and not trained_dtypes(cell).isdisjoint(HALF),
    ),
    Rule(
        "fp16-full-adamw",
        "reject",
        "second moments underflow in fp16 and the usual eps is 0 there, so weights trained in fp16 become NaN within "
        "steps (8-bit optimizers and Adafactor train them, and GaLore with eps 1e-6)",
        lambda cell, _: eps_too_small(cell),
    ),
    Rule(
        "autocast-compute-dtype",
        "reject",
        "inside bitsandbytes' products autocast casts once more what compute_dtype has cast: both must be one type",
        lambda cell, _: quantized(cell) and autocast(cell) not in (None, weight_dtype(cell)),
        lambda cell, _: f"compute_dtype is {cell.workload.compute_dtype} and autocast {cell.workload.autocast}",
    ),
    Rule(
        "fp32-modules-parts",
        "reject",
        "a norm or an embedding in fp32 passes on fp32, which the layer after it, in 16 bit, cannot take unless autocast casts it "
        "(fp32_modules: all, or autocast: bf16)",
        lambda cell, _: upcast(cell) and cell.workload.fp32_modules != "all" and autocast(cell) is None,
    ),
    Rule(
        "fp32-modules-fp32",
        "reject",
        "what is not quantised is in fp32 already where compute_dtype is fp32",
        lambda cell, _: upcast(cell) and weight_dtype(cell) == torch.float32,
    ),
    Rule(
        "kbit-large-vocab",
        "warn",
        "embeddings and head of a large vocabulary take twice in fp32 what they do in 16 bit (fp32_modules: norms, with autocast, "
        "leaves them as they are)",
        lambda cell, _: quantized(cell) and fp32_vocabulary_bytes(cell) > LARGE_VOCABULARY,
        lambda cell, _: f"{fp32_vocabulary_bytes(cell) / 2**30:.1f} GiB in each model",
    ),
    Rule(
        "bf16-hardware",
        "reject",
        "this device has no bf16 arithmetic (compute_dtype: fp16 serves int8 and nf4)",
        lambda cell, target: not target.bf16 and uses_bf16(cell),
    ),
    Rule(
        "int8-odd-width",
        "reject",
        "cuBLASLt has no int8 product for a layer whose outputs are no multiple of 4, from some hundred tokens on (seen on "
        "an H200 with 5,461 outputs and 1,024 tokens)",
        lambda cell, target: target.kind == "cuda" and quantized_to(cell, 8) and bool(odd_widths(cell.workload.model)),
        lambda cell, _: ", ".join(f"{name} is {width}" for name, width in odd_widths(cell.workload.model).items()),
    ),
    Rule(
        "experts-16-bit",
        "warn",
        "experts in stacked parameters are not quantised, as transformers and bitsandbytes quantise linear layers alone (nf4 packs "
        "them with nf4.quantize_moe_experts: true)",
        lambda cell, _: quantized(cell) and not packs_experts(cell) and stacked_weights(cell.workload.model) > 0,
        lambda cell, _: stay_in_16_bit(cell, stacked_weights(cell.workload.model)),
    ),
    Rule(
        "layers-16-bit",
        "warn",
        "the architecture's linear layers are of a class of its own, and transformers and bitsandbytes quantise torch's alone",
        lambda cell, _: quantized(cell) and own_linear_weights(cell.workload.model) > 0,
        lambda cell, _: stay_in_16_bit(cell, own_linear_weights(cell.workload.model)),
    ),
    Rule(
        "nf4-cpu-blocks",
        "warn",
        "on a CPU with AVX-512 bitsandbytes unpacks 4-bit layers with wrong scales where their inputs are a multiple of 16 and not "
        "of 64: weights are others than on CUDA, bytes the same",
        lambda cell, target: target.kind == "cpu" and quantized_to(cell, 4) and bool(cut_blocks(cell.workload.model)),
        lambda cell, _: ", ".join(f"{name} takes {width}" for name, width in cut_blocks(cell.workload.model).items()),
    ),
    Rule(
        "no-experts",
        "warn",
        "the model has no experts in stacked parameters: quantize_moe_experts changes nothing",
        lambda cell, _: packs_experts(cell) and not stacked_weights(cell.workload.model),
    ),
    Rule(
        "int8-checkpointing",
        "warn",
        "bitsandbytes' int8 products keep their inputs for the backward pass, whatever gradient checkpointing would drop: "
        "activations grow with the layers",
        lambda cell, target: (
            target.kind == "cuda" and quantized_to(cell, 8) and bool(cell.workload.gradient_checkpointing)
        ),
    ),
)
