"""Rules of optimizers and of where their state lies."""

from __future__ import annotations

import torch

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import (
    autocast,
    decomposes,
    full,
    loss_scaling,
    projects,
    quantized,
    trained_dtypes,
    upcast,
    weight_dtype,
    zero,
)

RULES: tuple[Rule, ...] = (
    Rule(
        "galore-adapter",
        "reject",
        "an adapter's weights are few, or of low rank, already: projecting their gradients saves nothing and adds work (an SVD)",
        lambda cell, _: projects(cell) and not full(cell),
    ),
    Rule(
        "galore-zero",
        "reject",
        "ZeRO flattens parameters to one dimension, and a gradient without rows and columns cannot be projected",
        lambda cell, _: projects(cell) and zero(cell),
    ),
    Rule(
        "galore-quantized",
        "reject",
        "a quantised weight has no gradient that could be projected",
        lambda cell, _: projects(cell) and quantized(cell),
    ),
    Rule(
        "muon-adapter",
        "reject",
        "the adapter trains no linear layer's weights, and those alone are the matrices that the optimizer orthogonalises",
        lambda cell, _: (
            cell.optimizer_value.of_matrices
            and not full(cell)
            and not cell.adapter_value.trains_linear
            and not cell.workload.lora_modules_to_save
        ),
    ),
    Rule(
        "muon-zero",
        "reject",
        "ZeRO flattens parameters to one dimension, and what orthogonalises matrices takes nothing else",
        lambda cell, _: cell.optimizer_value.of_matrices and zero(cell),
    ),
    Rule(
        "schedule-free-zero",
        "reject",
        "a schedule-free optimizer switches weights between training and evaluation, and what has it step copies of them (ZeRO's "
        "engine, torchao's offload) never says which it is",
        lambda cell, _: cell.optimizer_value.modes and (zero(cell) or cell.offload_value.optimizer_on_host),
    ),
    Rule(
        "layerwise-multi-backward",
        "reject",
        "a layerwise optimizer steps at every backward pass, so gradients cannot be accumulated over several",
        # A minibatch is an optimizer step of its own here, and a separate value model has an optimizer of its own: both
        # are fine.
        lambda cell, _: cell.optimizer_value.layerwise and cell.workload.gradient_accumulation_steps > 1,
    ),
    Rule(
        "layerwise-clip",
        "reject",
        "a layerwise optimizer has freed each gradient before a global norm is known (set max_grad_norm: 0), and "
        "steps on gradients that a loss scale still multiplies",
        lambda cell, _: cell.optimizer_value.layerwise and (cell.workload.max_grad_norm > 0 or loss_scaling(cell)),
    ),
    Rule(
        "layerwise-zero",
        "reject",
        "DeepSpeed's engine steps its optimizer itself, after the backward pass",
        lambda cell, _: cell.optimizer_value.layerwise and zero(cell),
    ),
    Rule(
        "zero-fp16-cpu",
        "reject",
        "DeepSpeed refuses fp16 on a CPU",
        lambda cell, target: target.kind == "cpu" and zero(cell) and weight_dtype(cell) == torch.float16,
    ),
    Rule(
        "zero-amp",
        "reject",
        "DeepSpeed has a mixed precision of its own: it switches autocast off inside its engine, and clips the "
        "gradients of its own fp16 autocast while they are still scaled (bf16 and fp16 have fp32 masters there)",
        lambda cell, _: zero(cell) and autocast(cell) is not None,
    ),
    Rule(
        "fp32-modules-zero",
        "reject",
        "DeepSpeed's engine casts every parameter to its own type, those in fp32 too (fp32_modules: none)",
        lambda cell, _: upcast(cell) and zero(cell),
    ),
    Rule(
        "activation-offloading-zero",
        "reject",
        "DeepSpeed moves parameters to memory of its own after TRL has noted where they lie, so they would be offloaded as if they "
        "were activations (activation_offloading: false, or offload none)",
        lambda cell, _: cell.workload.activation_offloading and zero(cell),
    ),
    Rule(
        "galore-fp32",
        "warn",
        "with fp32 gradients each projector is a view that keeps the whole SVD factor alive, and fp32 weights outweigh "
        "the saving: GaLore pays in bf16",
        lambda cell, _: decomposes(cell) and torch.float32 in trained_dtypes(cell),
    ),
    Rule(
        "galore-16-bit-svd",
        "warn",
        "this optimizer decomposes gradients in fp32 whatever the weights are, so each projector is a view that keeps the whole "
        "SVD factor alive in 16 bit too (galore_adamw keeps a copy of the rank alone there)",
        lambda cell, _: (
            decomposes(cell) and cell.optimizer_value.factored and torch.float32 not in trained_dtypes(cell)
        ),
    ),
    Rule(
        "zero-adapter-dtype",
        "warn",
        "ZeRO casts the adapter's weights to the engine's type, whatever adapter_dtype says",
        lambda cell, _: zero(cell) and not full(cell) and trained_dtypes(cell) != {weight_dtype(cell)},
    ),
    Rule(
        "lora-offload",
        "warn",
        "an adapter's optimizer state is small: offloading it costs time and saves next to nothing on the device",
        lambda cell, _: (
            cell.offload_value.optimizer_on_host and not cell.offload_value.parameters_on_host and not full(cell)
        ),
    ),
    Rule(
        "zero-factored",
        "warn",
        "ZeRO flattens parameters to one dimension, so a factored second moment is kept whole, and steps differ from those "
        "without ZeRO",
        lambda cell, _: zero(cell) and cell.optimizer_value.factored,
    ),
    Rule(
        "zero-eight-bit",
        "warn",
        "ZeRO flattens parameters to one dimension, so the blocks of 8-bit moments reach from one into the next and embeddings "
        "keep no 32-bit moments: steps differ from those without ZeRO (torchao's moments are fp32 unless blocks fit all elements)",
        lambda cell, _: zero(cell) and cell.optimizer_value.eight_bit,
    ),
)
