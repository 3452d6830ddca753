"""Axis `precision`: in which type weights are held, and in which type the job computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vrambench.methods.registry import AxisValue, Registry
from vrambench.methods.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Precision(AxisValue):
    """`weights`: the type of weights, None for the workload's `compute_dtype`. `amp`: the type that autocast always runs in, None
    where the workload's `autocast` says. `quantize`: gives the quantised module for one linear layer (in_features and
    out_features as it, weights on its device), if linear layers are quantised.
    `quantize_experts`: packs a module's parameter of that name, a stack of matrices, in place, if the workload wants it.
    `quantization_config`: what transformers' from_pretrained takes to read a checkpoint so quantised. `bits`: what one
    weight of such a layer takes, scales apart."""

    weights: torch.dtype | None
    amp: torch.dtype | None = None
    quantize: Callable[[nn.Linear, Workload], nn.Module] | None = None
    quantize_experts: Callable[[nn.Module, str, Workload], None] | None = None
    quantization_config: Callable[[Workload], Any] | None = None
    bits: int

    def dtype(self, workload: Workload) -> torch.dtype:
        """The type of every weight that is not quantised."""
        from vrambench.methods.dtypes import DTYPES

        return self.weights or DTYPES[workload.compute_dtype or "bf16"]

    def autocast(self, workload: Workload) -> torch.dtype | None:
        """The type that autocast runs in, None where it is off."""
        from vrambench.methods.dtypes import DTYPES

        return self.amp or DTYPES.get(workload.autocast or "none")

    def loss_scaling(self, workload: Workload) -> bool:
        """Whether losses pass through a GradScaler: under fp16 autocast, as in transformers' Trainer."""
        from vrambench.methods.dtypes import DTYPES

        return self.autocast(workload) == DTYPES["fp16"]

    def attended(self, workload: Workload) -> torch.dtype:
        """The type of queries, keys and values in the kernel: bitsandbytes' layers give outputs of their inputs' type, which
        norms in fp32 make fp32, until autocast casts them."""
        from vrambench.methods.dtypes import DTYPES

        upcast = workload.fp32_modules not in (None, "none")
        return self.autocast(workload) or (DTYPES["fp32"] if upcast else self.dtype(workload))

    def attention(self, workload: Workload) -> str:
        """The kernel that `attention: auto` stands for: flash, which takes half precision only, or else efficient."""
        return "flash" if self.attended(workload).itemsize < 4 else "efficient"


PRECISIONS = Registry(
    "precision",
    Precision,
    {
        "fp32": "vrambench.methods.precision.floating:FP32",
        "bf16": "vrambench.methods.precision.floating:BF16",
        "fp16": "vrambench.methods.precision.floating:FP16",
        "bf16_amp": "vrambench.methods.precision.floating:BF16_AMP",
        "fp16_amp": "vrambench.methods.precision.floating:FP16_AMP",
        "int8": "vrambench.methods.precision.int8:INT8",
        "nf4": "vrambench.methods.precision.nf4:NF4",
    },
)
