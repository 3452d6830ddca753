"""Axis `adapter`: which parameters are trained. Names are PEFT's; `none` trains every weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    from torch import nn

    from vrambench.methods.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Adapter(AxisValue):
    """`attach`: takes the transformers model, gives it with only what is to be trained requiring gradients. `trains_base`:
    the base's own weights are trained. `low_rank`: what is trained is factors of low rank already. `can_switch_off`: without
    it the model is the base again, so that one model serves as policy and as reference. `reads_weights`: its forward pass
    looks at the base's weights, which are unpacked for it where they are quantised."""

    attach: Callable[[nn.Module, Workload], nn.Module]
    trains_base: bool
    low_rank: bool = False
    can_switch_off: bool = False
    reads_weights: bool = False


ADAPTERS = Registry(
    "adapter",
    Adapter,
    {
        "none": "vrambench.methods.adapters.none:NONE",
        "lora": "vrambench.methods.adapters.lora:LORA",
        "dora": "vrambench.methods.adapters.dora:DORA",
    },
)
