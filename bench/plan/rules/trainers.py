"""Rules of other libraries' trainers: what they cannot do, and what is not passed on to them."""

from __future__ import annotations

import torch

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import (
    autocast,
    full,
    not_installed,
    quantized,
    trained_dtypes,
    untold_optimizer,
    untold_settings,
)
from vrambench.methods.offload.learner import PlainLearner

RULES: tuple[Rule, ...] = (
    Rule(
        "trainer-offload",
        "reject",
        "another library's trainer steps its optimizer itself, and is not told of any offload (offload none)",
        lambda cell, _: cell.algorithm_value.foreign is not None and cell.offload_value.learner is not PlainLearner,
    ),
    Rule(
        "trainer-optimizer",
        "reject",
        "another library's trainer makes its optimizer itself, of what transformers' TrainingArguments say",
        lambda cell, _: untold_optimizer(cell) is not None,
        lambda cell, _: f"{cell.optimizer}: {untold_optimizer(cell)}",
    ),
    Rule(
        "trainer-loss",
        "reject",
        "another library's trainer computes its loss in ways of its own, and the cell's is none of them",
        lambda cell, _: (
            cell.algorithm_value.foreign is not None and cell.workload.loss not in cell.algorithm_value.foreign.losses
        ),
        lambda cell, _: (
            f"loss {cell.workload.loss}; {cell.algorithm_value.foreign.takes}" if cell.algorithm_value.foreign else ""
        ),
    ),
    Rule(
        "trainer-lengths",
        "reject",
        "another library's trainer is given sequences that are all as long, and is told of no packing",
        lambda cell, _: cell.algorithm_value.foreign is not None and cell.workload.lengths is not None,
    ),
    Rule(
        "trainer-settings",
        "reject",
        "another library's trainer takes the settings of its own configuration, but for those that a cell says otherwise",
        lambda cell, _: untold_settings(cell) is not None,
        lambda cell, _: untold_settings(cell) or "",
    ),
    Rule(
        "trainer-activation-offloading",
        "reject",
        "this trainer offloads no activations, or not on this device (activation_offloading: false)",
        lambda cell, target: (
            cell.algorithm_value.foreign is not None
            and cell.workload.activation_offloading
            and (target.kind == "cpu" or not cell.algorithm_value.foreign.offloads_activations)
        ),
    ),
    Rule(
        "trainer-adapter-dtype",
        "reject",
        "TRL casts what is trained of a quantised model to bf16 (adapter_dtype: bf16)",
        lambda cell, _: (
            cell.algorithm_value.foreign is not None
            and quantized(cell)
            and not full(cell)
            and trained_dtypes(cell) != {torch.bfloat16}
        ),
    ),
    Rule(
        "trainer-adapter-schedule",
        "reject",
        "another library's trainer does nothing to an adapter between its steps, so that its ranks would stay as they begin",
        lambda cell, _: cell.algorithm_value.foreign is not None and cell.adapter_value.schedule is not None,
    ),
    Rule(
        "trainer-virtual-tokens",
        "reject",
        "this trainer scores the tokens that it gave, and virtual tokens, which PEFT puts before them, are none of those",
        lambda cell, _: (
            cell.algorithm_value.foreign is not None
            and not cell.algorithm_value.foreign.takes_virtual_tokens
            and cell.adapter_value.virtual_tokens(cell.workload) > 0
        ),
    ),
    Rule(
        "trainer-fp16-cpu",
        "reject",
        "accelerate has no fp16 autocast on a CPU",
        lambda cell, target: (
            cell.algorithm_value.foreign is not None and target.kind == "cpu" and autocast(cell) == torch.float16
        ),
    ),
    Rule(
        "not-installed",
        "reject",
        "what the cell needs is not installed here",
        lambda cell, _: bool(not_installed(cell)),
        lambda cell, _: not_installed(cell),
    ),
)
