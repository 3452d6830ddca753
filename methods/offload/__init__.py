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
    without DeepSpeed. `prepare`: what must be compiled or downloaded once, before any cell is timed."""

    learner: LearnerFactory
    zero_stage: int = 0
    prepare: Callable[[], None] | None = None


OFFLOADS = Registry(
    "offload",
    Offload,
    {
        "none": "vrambench.methods.offload.none:NONE",
        "zero2_optimizer": "vrambench.methods.offload.deepspeed:ZERO2_OPTIMIZER",
    },
)
