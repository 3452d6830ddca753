"""Which cells cannot run, silently train something else, or run but mislead: an ordered table of rules.

    check(cell, "cpu")   ->   (Finding("quantized-full", "reject", "a plain loop ..."),)

Rules look at what axis values declare about themselves (`quantize`, `trains_base`, `layerwise`, `zero_stage`, ...; see
`traits.py`), never at names, so that a user's own value obeys them too. A cell with a `reject` is never started: its result
is `invalid`, with the rule's id and reason. A `warn` is shown beside the cell, which runs. The table has the rejections
first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from vrambench.bench.plan.traits import (
    attends_by_own_code,
    autocast,
    beyond_chunks,
    chosen_kernels,
    cut_blocks,
    eps_too_small,
    flat,
    full,
    loss_scaling,
    odd_widths,
    own_linear_weights,
    packs_experts,
    positions,
    product_dtype,
    projects,
    quantized,
    remax_temperature,
    stacked_weights,
    trained_dtypes,
    unable_to_attend,
    unable_to_generate,
    upcast,
    uses_bf16,
    weight_dtype,
    zero,
)
from vrambench.methods.cell import Cell
from vrambench.methods.device import Kind
from vrambench.methods.dtypes import HALF
from vrambench.methods.models.losses import LOSSES

Severity = Literal["reject", "warn"]


@dataclass(frozen=True)
class Target:
    """What a cell is checked for. `bf16`: the device has bf16 arithmetic and flash attention, as GPUs of compute capability 8.0
    have, and CPUs."""

    kind: Kind
    bf16: bool = True

    @property
    def capability(self) -> tuple[int, int] | None:
        """A compute capability that has no more than this device; None for one that has everything."""
        return None if self.bf16 else (7, 5)


@dataclass(frozen=True)
class Rule:
    """`reason`: one sentence for people. `when`: whether the rule holds for a cell on a target. `numbers`: the cell's own, which
    the reason is about, and the nearest that would do."""

    id: str
    kind: Severity
    reason: str
    when: Callable[[Cell, Target], bool]
    numbers: Callable[[Cell, Target], str] | None = None

    def finding(self, cell: Cell, target: Target) -> Finding:
        """What is told of `cell` on `target`, for which the rule holds."""
        numbers = f": {self.numbers(cell, target)}" if self.numbers else ""
        return Finding(self.id, self.kind, self.reason + numbers)


@dataclass(frozen=True)
class Finding:
    """A rule that holds for a cell."""

    rule: str
    kind: Severity
    reason: str


def check(cell: Cell, device_kind: Kind, *, bf16: bool = True) -> tuple[Finding, ...]:
    """Every rule that holds for `cell` on a device of that kind, rejections first, else in the table's order.

    `bf16=False` says that the device has no bf16 arithmetic.
    """
    target = Target(device_kind, bf16)
    found = [rule.finding(cell, target) for rule in RULES if rule.when(cell, target)]
    if target.kind == "cpu":
        found += cuda_only(cell)
    return tuple(sorted(found, key=lambda finding: finding.kind != "reject"))


def cuda_only(cell: Cell) -> list[Finding]:
    """One finding for each axis value that declares itself unable to run on the CPU."""
    return [
        Finding("cuda-only", "reject", f"{cell.axes[axis]} runs on CUDA alone: {value.cuda_only}")
        for axis, value in cell.values.items()
        if value.cuda_only
    ]


def stay_in_16_bit(cell: Cell, weights: int) -> str:
    """What so many weights take that are not quantised."""
    return (
        f"{weights * weight_dtype(cell).itemsize / 2**30:.1f} GiB of each model stay in {cell.workload.compute_dtype}"
    )


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
        "galore-adapter",
        "reject",
        "an adapter's factors are of low rank already: projecting their gradients saves nothing and adds the SVD",
        lambda cell, _: projects(cell) and cell.adapter_value.low_rank,
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
        "int8-read-cpu",
        "reject",
        "on a CPU, PEFT loses the scales of an int8 weight when an adapter reads it",
        lambda cell, target: (
            target.kind == "cpu"
            and quantized(cell)
            and cell.precision_value.bits == 8
            and cell.adapter_value.reads_weights
        ),
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
        "autocast-compute-dtype",
        "reject",
        "inside bitsandbytes' products autocast casts once more what compute_dtype has cast: both must be one type",
        lambda cell, _: quantized(cell) and autocast(cell) not in (None, weight_dtype(cell)),
        lambda cell, _: f"compute_dtype is {cell.workload.compute_dtype} and autocast {cell.workload.autocast}",
    ),
    Rule(
        "fp32-modules-parts",
        "reject",
        "a layer in 16 bit refuses what a norm or an embedding in fp32 gives it, unless autocast casts it (fp32_modules: all, or "
        "autocast: bf16)",
        lambda cell, _: upcast(cell) and cell.workload.fp32_modules != "all" and autocast(cell) is None,
    ),
    Rule(
        "fp32-modules-fp32",
        "reject",
        "what is not quantised is in fp32 already where compute_dtype is fp32",
        lambda cell, _: upcast(cell) and weight_dtype(cell) == torch.float32,
    ),
    Rule(
        "fp32-modules-zero",
        "reject",
        "DeepSpeed's engine casts every parameter to its own type, those in fp32 too (fp32_modules: none)",
        lambda cell, _: upcast(cell) and zero(cell),
    ),
    Rule(
        "fp32-flash",
        "reject",
        "the flash attention kernel takes half precision only",
        lambda cell, _: (
            cell.workload.attention in ("flash", "flash_attention_2") and product_dtype(cell) == torch.float32
        ),
    ),
    Rule(
        "reference-adapter-off",
        "reject",
        "there is no adapter to switch off, or what is left is not the base: the reference needs a copy of its own",
        lambda cell, _: cell.workload.reference == "adapter_off" and not cell.adapter_value.can_switch_off,
    ),
    Rule(
        "reentrant-alone",
        "reject",
        "use_reentrant says how checkpointing is done, and nothing is checkpointed (gradient_checkpointing: true)",
        lambda cell, _: cell.workload.use_reentrant and not cell.workload.gradient_checkpointing,
    ),
    Rule(
        "activation-offloading-zero",
        "reject",
        "DeepSpeed moves parameters to memory of its own after TRL has noted where they lie, so they would be offloaded as if they "
        "were activations (activation_offloading: false, or offload none)",
        lambda cell, _: cell.workload.activation_offloading and zero(cell),
    ),
    Rule(
        "lora-nothing",
        "reject",
        "neither a layer nor a parameter is named for the adapter (lora_target_modules, lora_target_parameters)",
        lambda cell, _: cell.workload.lora_target_modules == () and not cell.workload.lora_target_parameters,
    ),
    Rule(
        "lora-parameters",
        "reject",
        "PEFT adapts parameters without dropout and without trained lengths: what it adds to them is added to the weight "
        "itself (lora_dropout: 0, adapter lora)",
        lambda cell, _: (
            bool(cell.workload.lora_target_parameters)
            and (bool(cell.workload.lora_dropout) or cell.adapter_value.reads_weights)
        ),
    ),
    Rule(
        "remax-greedy",
        "reject",
        "at temperature 0 the sampled response is the greedy one, so every advantage and the gradient are zero",
        lambda cell, _: remax_temperature(cell) == 0,
    ),
    Rule(
        "save-merged",
        "reject",
        "there is no adapter that could be merged (save: model saves all weights)",
        lambda cell, _: cell.workload.save == "merged" and full(cell),
    ),
    Rule(
        "loss-logprobs",
        "reject",
        "the algorithm's own loss is made of tokens' log-probabilities, which this loss does not give",
        lambda cell, _: cell.algorithm_value.from_logprobs and LOSSES[cell.workload.loss].scorer is None,
        lambda cell, _: LOSSES[cell.workload.loss].why_none,
    ),
    Rule(
        "loss-cuda-only",
        "reject",
        "this loss runs on CUDA alone",
        lambda cell, target: target.kind == "cpu" and LOSSES[cell.workload.loss].cuda_only is not None,
        lambda cell, _: LOSSES[cell.workload.loss].cuda_only or "",
    ),
    Rule(
        "lengths-algorithm",
        "reject",
        "the algorithm samples its responses itself, all as long as response_tokens, and takes no sequences of several lengths",
        lambda cell, _: cell.workload.lengths is not None and not cell.algorithm_value.takes_lengths,
    ),
    Rule(
        "lengths-none",
        "reject",
        "padding_free, packing and pad_to_multiple_of make rows of sequences of several lengths, and all are as long here (say how "
        "long they are: lengths)",
        lambda cell, _: (
            cell.workload.lengths is None
            and (
                cell.workload.padding_free
                or cell.workload.packing != "none"
                or cell.workload.pad_to_multiple_of is not None
            )
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
        lambda cell, _: cell.workload.lengths is not None and flat(cell) and attends_by_own_code(cell.workload.model),
    ),
    Rule(
        "too-long",
        "reject",
        "prompt and response together are longer than the model's positions (max_position_embeddings)",
        lambda cell, _: cell.workload.sequence_tokens > positions(cell.workload.model),
        lambda cell, _: f"{cell.workload.sequence_tokens:,} tokens, {positions(cell.workload.model):,} positions",
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
        "rollout-batch",
        "reject",
        "a rollout must be a whole number of optimizer steps, each of batch_size times gradient_accumulation_steps sequences",
        lambda cell, _: (cell.workload.rollout_batch or 0) % cell.rollout_unit != 0,
        lambda cell, _: (
            f"rollout_batch {cell.workload.rollout_batch} is no multiple of {cell.rollout_unit}; the nearest above is "
            f"{-(-(cell.workload.rollout_batch or 0) // cell.rollout_unit) * cell.rollout_unit}"
        ),
    ),
    Rule(
        "bf16-hardware",
        "reject",
        "this device has no bf16 arithmetic (compute_dtype: fp16 serves int8 and nf4)",
        lambda cell, target: not target.bf16 and uses_bf16(cell),
    ),
    Rule(
        "flash-hardware",
        "reject",
        "this device has no flash attention, which needs compute capability 8.0 (attention: auto takes the efficient kernel here)",
        lambda cell, target: not target.bf16 and cell.workload.attention in ("flash", "flash_attention_2"),
    ),
    Rule(
        "int8-odd-width",
        "reject",
        "cuBLASLt has no int8 product for a layer whose outputs are no multiple of 4, from some hundred tokens on (seen on "
        "an H200 with 5,461 outputs and 1,024 tokens)",
        lambda cell, target: (
            target.kind == "cuda"
            and quantized(cell)
            and cell.precision_value.bits == 8
            and bool(odd_widths(cell.workload.model))
        ),
        lambda cell, _: ", ".join(f"{name} is {width}" for name, width in odd_widths(cell.workload.model).items()),
    ),
    Rule(
        "galore-fp32",
        "warn",
        "with fp32 gradients each projector is a view that keeps the whole SVD factor alive, and fp32 weights outweigh "
        "the saving: GaLore pays in bf16",
        lambda cell, _: projects(cell) and torch.float32 in trained_dtypes(cell),
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
        lambda cell, _: zero(cell) and not full(cell),
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
        "keep no 32-bit moments: steps differ from those without ZeRO",
        lambda cell, _: zero(cell) and cell.optimizer_value.eight_bit,
    ),
    Rule(
        "empty-cache-cpu",
        "warn",
        "a CPU's memory has no cache that could be emptied: torch_empty_cache_steps changes nothing here",
        lambda cell, target: target.kind == "cpu" and cell.workload.torch_empty_cache_steps > 0,
    ),
    Rule(
        "activation-offloading-cpu",
        "warn",
        "a CPU's memory is the host's: activation_offloading copies what is saved, and frees nothing for it here",
        lambda cell, target: target.kind == "cpu" and cell.workload.activation_offloading,
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
        lambda cell, target: (
            target.kind == "cpu"
            and quantized(cell)
            and cell.precision_value.bits == 4
            and bool(cut_blocks(cell.workload.model))
        ),
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
            target.kind == "cuda"
            and quantized(cell)
            and cell.precision_value.bits == 8
            and bool(cell.workload.gradient_checkpointing)
        ),
    ),
    Rule(
        "rollout-dropout",
        "warn",
        "the adapter's dropout stays on in rollouts and scores, so log-probabilities of one token differ from pass to pass",
        lambda cell, _: bool(cell.workload.lora_dropout) and cell.workload.rollout_batch is not None,
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
        "of PyTorch's kernels, sdpa does not come to the flash kernel in every layer",
        lambda cell, target: any(choice.why for choice in chosen_kernels(cell, target.capability)),
        lambda cell, target: "; ".join(
            f"{choice.kernel}, since there is {choice.why}"
            for choice in chosen_kernels(cell, target.capability)
            if choice.why
        ),
    ),
    Rule(
        "lora-paged",
        "warn",
        "an adapter's optimizer state is megabytes, and tensors under 4096 elements keep 32-bit state: 8 bits or "
        "paging save next to nothing",
        lambda cell, _: (cell.optimizer_value.paged or cell.optimizer_value.eight_bit) and not full(cell),
    ),
)
