"""Axis `offload`: what is kept off the device during training, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    from vrambench.methods.offload.learner import LearnerFactory


@dataclass(frozen=True, kw_only=True)
class Offload(AxisValue):
    """`learner`: makes what runs backward passes and optimizer steps for one trained model. `zero_stage`: DeepSpeed's stage, 0
    without DeepSpeed. `optimizer_on_host`, `parameters_on_host`, `activations_on_host`: where the optimizer's state, the weights
    and what autograd saves lie while nothing computes with them. `across_layers`: what it does in one layer depends on others, so
    that a prediction follows all of them. `prepare`: what must be compiled or downloaded once, before any cell is timed."""

    learner: LearnerFactory
    zero_stage: int = 0
    optimizer_on_host: bool = False
    parameters_on_host: bool = False
    activations_on_host: bool = False
    across_layers: bool = False
    prepare: Callable[[], None] | None = None


OFFLOADS = Registry(
    "offload",
    Offload,
    {
        "none": "vrambench.methods.offload.none:NONE",
        "activations": "vrambench.methods.offload.activations:ACTIVATIONS",
        "zero2": "vrambench.methods.offload.deepspeed:ZERO2",
        "zero2_optimizer": "vrambench.methods.offload.deepspeed:ZERO2_OPTIMIZER",
        "zero3_optimizer": "vrambench.methods.offload.deepspeed:ZERO3_OPTIMIZER",
        "zero3_all": "vrambench.methods.offload.deepspeed:ZERO3_ALL",
        "torchao_optimizer": "vrambench.methods.offload.torchao:TORCHAO_OPTIMIZER",
    },
)
