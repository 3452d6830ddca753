"""Rules of what is kept off the device, and by whom."""

from __future__ import annotations

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import loss_scaling, quantized, quantized_to
from vrambench.methods.cell import Cell
from vrambench.methods.offload.torchao import CpuOffloadOptions
from vrambench.methods.offload.zero import STAGE_3_ONLY, ZeroOptions


def idle_options(cell: Cell) -> tuple[str, ...]:
    """Options of ZeRO that are set and change nothing in the cell's stage."""
    offload = cell.offload_value
    if offload.options is not ZeroOptions:
        return ()
    idle: tuple[str, ...] = STAGE_3_ONLY if offload.zero_stage < 3 else ()
    idle += () if offload.optimizer_on_host else ("pin_memory",)
    if not idle:
        return ()
    said, usual = cell.workload.of(ZeroOptions), ZeroOptions()
    return tuple(name for name in idle if getattr(said, name) != getattr(usual, name))


def torchao(cell: Cell) -> CpuOffloadOptions | None:
    """torchao's options, where its optimizer is what offloads."""
    offload = cell.offload_value
    return cell.workload.of(CpuOffloadOptions) if offload.options is CpuOffloadOptions else None


RULES: tuple[Rule, ...] = (
    Rule(
        "zero3-int8",
        "reject",
        "bitsandbytes keeps int8 weights of its own on the device, which ZeRO-3 knows nothing of, and nobody has shown both on a "
        "GPU (precision nf4 is documented to work)",
        lambda cell, target: target.kind != "cpu" and cell.offload_value.zero_stage == 3 and quantized_to(cell, 8),
    ),
    Rule(
        "zero3-reads-weights",
        "reject",
        "the adapter reads weights of other modules than its own: ZeRO-3 gathers those in the engine's own forward pass alone, "
        "which a rollout is not, and of quantised ones PEFT makes parameters that ZeRO-3 does not know",
        lambda cell, _: (
            cell.offload_value.zero_stage == 3
            and cell.adapter_value.reads_weights
            and (quantized(cell) or cell.workload.rollout_batch is not None)
        ),
    ),
    Rule(
        "zero3-bare-parameters",
        "reject",
        "what the adapter trains is in no module of its own: ZeRO-3 gathers that in the engine's own forward pass alone, which a "
        "rollout is not",
        lambda cell, _: (
            cell.offload_value.zero_stage == 3
            and cell.adapter_value.bare_parameters
            and cell.workload.rollout_batch is not None
        ),
    ),
    Rule(
        "merge-zero3",
        "reject",
        "PEFT merges into weights that ZeRO-3 has not gathered, so the base would be saved as it was (save: model)",
        lambda cell, _: cell.workload.save == "merged" and cell.offload_value.zero_stage == 3,
    ),
    Rule(
        "zero-options",
        "reject",
        "it changes nothing in this stage of ZeRO: stage3_* and sub_group_size are of stage 3, and pin_memory is of what lies on "
        "the host",
        lambda cell, _: bool(idle_options(cell)),
        lambda cell, _: ", ".join(f"zero.{name}" for name in idle_options(cell)),
    ),
    Rule(
        "torchao-clip",
        "reject",
        "torchao copies gradients to the host before they could be clipped or unscaled (set max_grad_norm: 0)",
        lambda cell, _: torchao(cell) is not None and (cell.workload.max_grad_norm > 0 or loss_scaling(cell)),
    ),
    Rule(
        "torchao-accumulation",
        "reject",
        "gradients that are freed on the device cannot be added to (cpu_offload.offload_gradients: false)",
        lambda cell, _: (
            bool((said := torchao(cell)) and said.offload_gradients) and cell.workload.gradient_accumulation_steps > 1
        ),
    ),
    Rule(
        "torchao-layerwise",
        "reject",
        "a layerwise optimizer steps in the backward pass, and torchao's after it",
        lambda cell, _: torchao(cell) is not None and cell.optimizer_value.layerwise,
    ),
    Rule(
        "torchao-8bit",
        "reject",
        "bitsandbytes' paged and GaLore's optimizers keep or compute their state on CUDA, and torchao's steps on the host",
        lambda cell, _: (
            torchao(cell) is not None and (cell.optimizer_value.paged or cell.optimizer_value.projects_gradients)
        ),
    ),
    Rule(
        "activations-twice",
        "reject",
        "both offload what autograd saves: activation_offloading is TRL's way, and the offload activations is torch's own",
        lambda cell, _: cell.workload.activation_offloading and cell.offload_value.activations_on_host,
    ),
    Rule(
        "activations-cpu",
        "warn",
        "a CPU's memory is the host's: what autograd saves stays where it is",
        lambda cell, target: target.kind == "cpu" and cell.offload_value.activations_on_host,
    ),
    Rule(
        "zero3-qlora",
        "warn",
        "bitsandbytes' 4-bit products keep every weight that was brought to the device until the backward pass has used it, so "
        "that more is there than without offloading",
        lambda cell, _: cell.offload_value.parameters_on_host and quantized_to(cell, 4),
    ),
    Rule(
        "zero3-rollout",
        "warn",
        "every token of a rollout brings all of the policy's weights from the host once more",
        lambda cell, _: cell.offload_value.parameters_on_host and cell.workload.rollout_batch is not None,
    ),
    Rule(
        "zero-shards-nothing",
        "warn",
        "with one GPU nothing is sharded, so fp32 master weights and a second copy of gradients come on top of what training "
        "without ZeRO holds",
        lambda cell, _: cell.offload_value.zero_stage > 0 and not cell.offload_value.optimizer_on_host,
    ),
)
