"""Rules of adapters."""

from __future__ import annotations

import torch

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import (
    autocast,
    full,
    merges,
    narrow,
    quantized,
    quantized_to,
    trained_dtypes,
    unknown_layers,
    weight_dtype,
    zero,
)

RULES: tuple[Rule, ...] = (
    Rule(
        "int8-read-cpu",
        "reject",
        "on a CPU, PEFT loses the scales of an int8 weight when an adapter reads it",
        lambda cell, target: target.kind == "cpu" and quantized_to(cell, 8) and cell.adapter_value.reads_weights,
    ),
    Rule(
        "reference-adapter-off",
        "reject",
        "there is no adapter to switch off, or what is left is not the base: the reference needs a copy of its own",
        lambda cell, _: (
            cell.workload.reference == "adapter_off"
            and (not cell.adapter_value.can_switch_off or cell.adapter_value.changes_base(cell.workload))
        ),
    ),
    Rule(
        "value-adapter",
        "reject",
        "the value model's adapter is put on the policy's base beside the policy's own, and the policy has none (value: head or "
        "separate)",
        lambda cell, _: cell.workload.value == "adapter" and full(cell),
    ),
    Rule(
        "value-adapter-schedule",
        "reject",
        "PEFT trains one such adapter on a base alone, since its ranks are those of the whole model (value: head or separate)",
        lambda cell, _: cell.workload.value == "adapter" and cell.adapter_value.schedule is not None,
    ),
    Rule(
        "value-adapter-zero",
        "reject",
        "each of DeepSpeed's engines takes a whole model for itself, and two adapters on one base would need two engines for it "
        "(value: head or separate)",
        lambda cell, _: cell.workload.value == "adapter" and zero(cell),
    ),
    Rule(
        "unknown-layers",
        "reject",
        "an adapter is put on layers by their names",
        lambda cell, _: unknown_layers(cell) is not None,
        lambda cell, _: unknown_layers(cell) or "",
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
        "save-merged",
        "reject",
        "there is no adapter that could be merged (save: model saves all weights)",
        lambda cell, _: cell.workload.save == "merged" and full(cell),
    ),
    Rule(
        "save-as-nothing",
        "reject",
        "save_as names what is saved, and nothing is (save: model or merged)",
        lambda cell, _: cell.workload.save_as is not None and cell.workload.save == "none",
    ),
    Rule(
        "merge-16-bit",
        "reject",
        "an adapter is merged into 16-bit weights, which are quantised anew where they are read: rounding would swallow most of it "
        "(precision bf16 or fp16)",
        lambda cell, _: not cell.algorithm_value.trains and quantized(cell),
    ),
    Rule(
        "merge-nothing",
        "reject",
        "it merges an adapter that another cell has saved, and saves what comes of it (adapter lora, adapter_weights: saved:NAME, "
        "save: merged)",
        lambda cell, _: (
            not cell.algorithm_value.trains
            and (full(cell) or cell.workload.adapter_weights == "initial" or cell.workload.save != "merged")
        ),
    ),
    Rule(
        "merge-quantized",
        "reject",
        "PEFT merges this adapter into no quantised weight, or into none at all (save: model saves the adapter)",
        lambda cell, _: cell.workload.save == "merged" and not full(cell) and not merges(cell),
    ),
    Rule(
        "adapter-widens",
        "reject",
        "on quantised layers PEFT leaves what this adapter gives in fp32, which attention and norms in 16 bit refuse: take "
        "autocast, or compute_dtype and adapter_dtype fp32",
        lambda cell, _: (
            quantized(cell)
            and cell.precision_value.bits in cell.adapter_value.widens
            and autocast(cell) is None
            and {weight_dtype(cell), *trained_dtypes(cell)} != {torch.float32}
        ),
    ),
    Rule(
        "virtual-tokens-one-row",
        "reject",
        "virtual tokens stand before a row, and where several sequences share one (padding_free, packing: bfd), only the first "
        "would have them",
        lambda cell, _: cell.workload.one_row and cell.adapter_value.virtual_tokens(cell.workload) > 0,
    ),
    Rule(
        "virtual-tokens-narrow",
        "reject",
        "PEFT makes virtual tokens of the layers' width, and this model embeds its tokens in fewer numbers",
        lambda cell, _: cell.adapter_value.virtual_tokens(cell.workload) > 0 and narrow(cell),
    ),
    Rule(
        "zero-buffers",
        "reject",
        "ZeRO casts the adapter's vectors to the engine's type, and not its projections, which are buffers: take the model's type "
        "as adapter_dtype",
        lambda cell, _: (
            zero(cell) and cell.adapter_value.projects_by_buffers and trained_dtypes(cell) != {weight_dtype(cell)}
        ),
    ),
    Rule(
        "adapter-schedule",
        "reject",
        "the adapter reads gradients once the optimizer has stepped, and by then ZeRO and layerwise optimizers have dropped them",
        lambda cell, _: cell.adapter_value.schedule is not None and (zero(cell) or cell.optimizer_value.layerwise),
    ),
    Rule(
        "rollout-dropout",
        "warn",
        "the adapter's dropout stays on in rollouts and scores, so log-probabilities of one token differ from pass to pass",
        lambda cell, _: bool(cell.workload.lora_dropout) and cell.workload.rollout_batch is not None,
    ),
    Rule(
        "pairs-dropout",
        "warn",
        "the adapter's dropout stays on, so two passes over one response give different numbers; TRL's trainers of pairs switch it "
        "off (lora_dropout: 0)",
        lambda cell, _: bool(cell.workload.lora_dropout) and cell.algorithm_value.from_pairs,
    ),
    Rule(
        "lora-paged",
        "warn",
        "an adapter's optimizer state is megabytes, and tensors under 4096 elements keep 32-bit state: 8 bits or "
        "paging save next to nothing",
        lambda cell, _: (cell.optimizer_value.paged or cell.optimizer_value.eight_bit) and not full(cell),
    ),
)
