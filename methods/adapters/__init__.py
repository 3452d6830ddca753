"""Axis `adapter`: which parameters are trained. Names are PEFT's; `none` trains every weight."""

from __future__ import annotations

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
    makes every sequence longer. `schedule`: takes a trained module, gives what is done after each of its optimizer steps.
    `penalty`: takes the model, gives what is added to the mean loss of labels, a scalar."""

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
