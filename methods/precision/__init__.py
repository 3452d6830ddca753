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
    """`weights`: the type of weights, None for the workload's `compute_dtype`. `autocast`: the type that autocast runs
    in, if it is on. `loss_scaling`: losses pass through a GradScaler. `quantize`: gives the quantised module for one
    linear layer (in_features and out_features as it, weights on its device), if linear layers are quantised.
    `quantization_config`: what transformers' from_pretrained takes to read a checkpoint so quantised. `bits`: what one
    weight of such a layer takes, scales apart."""

    weights: torch.dtype | None
    autocast: torch.dtype | None = None
    loss_scaling: bool = False
    quantize: Callable[[nn.Linear, Workload], nn.Module] | None = None
    quantization_config: Callable[[Workload], Any] | None = None
    bits: int

    def dtype(self, workload: Workload) -> torch.dtype:
        """The type of every weight that is not quantised."""
        from vrambench.methods.dtypes import DTYPES

        return self.weights or DTYPES[workload.compute_dtype or "bf16"]

    def attention(self, workload: Workload) -> str:
        """The kernel that `attention: auto` stands for: flash, which takes half precision only, or else efficient."""
        return "flash" if (self.autocast or self.dtype(workload)).itemsize < 4 else "efficient"


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
