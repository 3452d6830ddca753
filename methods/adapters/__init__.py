"""Axis `adapter`: which parameters are trained. Names are PEFT's; `none` trains every weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vrambench.methods.workload import Workload


class Schedule(Protocol):
    """What an adapter does as training goes on."""

    def stepped(self, step: int) -> None:
        """Optimizer step number `step`, from 0, is done; its gradients are still there."""

    def state(self) -> Iterator[torch.Tensor]:
        """Every tensor that it keeps between steps."""


NUMBER = re.compile(r"(?<![A-Za-z_])\d|\\d")
"""In a regular expression: a layer's number, or one digit of it; names such as `w1` and `4h` are none."""


def named_by_number(workload: Workload) -> bool:
    """Whether the workload's names of targets say which layers are meant, by their numbers."""
    for names in (workload.lora_target_modules, workload.lora_target_parameters, workload.lora_modules_to_save):
        if isinstance(names, str):
            every_number = re.sub(r"(\\d|\[0-9\])[+*]", "", names)
            if NUMBER.search(every_number):
                return True
        elif any(part.isdecimal() for name in names or () for part in name.split(".")):
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Adapter(AxisValue):
    """`attach`: takes the transformers model, gives it with only what is to be trained requiring gradients. `trains_base`:
    the base's own weights are trained. `can_switch_off`: without it the model is the base again, so that one model serves as policy
    and as reference, unless it `changes_base` at the start. `reads_weights`: its forward pass looks at the base's weights, which
    are unpacked for it where they are quantised. `bare_parameters`: what it trains is in no module that is called (PEFT's
    nn.ParameterDict). `trains_linear`: linear layers' weights are among it. `merges`: it can be merged into the base's weights;
    `merges_quantized`: into quantised ones too. `widens`: bits of quantised layers whose output it leaves in fp32, unless there is
    autocast.
    `projects_by_buffers`: it multiplies by matrices that are buffers, of `adapter_dtype`. `virtual_tokens`: by how many tokens it
    makes every sequence longer. `uneven`: what it adds to one layer may differ from what it adds to another. `schedule`: takes a
    trained module, gives what is done after each of its optimizer steps. `penalty`: takes the model, gives what is added to the
    mean loss of labels, a scalar."""

    attach: Callable[[nn.Module, Workload], nn.Module]
    trains_base: bool
    can_switch_off: bool = False
    changes_base: Callable[[Workload], bool] = lambda workload: False
    reads_weights: bool = False
    bare_parameters: bool = False
    trains_linear: bool = True
    merges: bool = True
    merges_quantized: bool = True
    widens: frozenset[int] = frozenset()
    projects_by_buffers: bool = False
    virtual_tokens: Callable[[Workload], int] = lambda workload: 0
    uneven: Callable[[Workload], bool] = named_by_number
    schedule: Callable[[nn.Module], Schedule] | None = None
    penalty: Callable[[nn.Module], torch.Tensor] | None = None


ADAPTERS = Registry(
    "adapter",
    Adapter,
    {
        "none": "vrambench.methods.adapters.none:NONE",
        "lora": "vrambench.methods.adapters.lora:LORA",
        "dora": "vrambench.methods.adapters.dora:DORA",
        "rslora": "vrambench.methods.adapters.rslora:RSLORA",
        "ia3": "vrambench.methods.adapters.ia3:IA3",
        "adalora": "vrambench.methods.adapters.adalora:ADALORA",
        "vera": "vrambench.methods.adapters.vera:VERA",
        "oft": "vrambench.methods.adapters.oft:OFT",
        "prompt_tuning": "vrambench.methods.adapters.prompt_tuning:PROMPT_TUNING",
    },
    families={"peft": "vrambench.methods.adapters.any_peft:adapter_of"},
)
