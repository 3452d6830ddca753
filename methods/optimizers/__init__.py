"""Axis `optimizer`. Names are the `optim` values of transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vrambench.methods.workload import Workload


class Steps(Protocol):
    """What training needs of an optimizer; every torch.optim.Optimizer has it."""

    @property
    def state(self) -> Mapping[Any, Any]: ...

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Optimizer(AxisValue):
    """`build`: the optimizer over what a module trains, with the workload's learning rate and options. `layerwise`: each parameter
    steps as soon as its gradient is there, inside the backward pass, which frees the gradient. `projects_gradients`: it keeps its
    state in a low-rank projection of the gradient (GaLore). `eight_bit`, `paged`, `factored`: how its state is held. `offloaded`:
    the optimizer that takes its place where state lies on the host (DeepSpeed's CPUAdam for AdamW), if there is one.
    `mark_phases`: given a phase marker and the phase around it, the context in which it marks phases of its own (GaLore's svd).
    `svd_gap`: how many of its steps lie between two of those in which it has a phase `svd`, the first of all being one."""

    build: Callable[[nn.Module, Workload], Steps]
    layerwise: bool = False
    projects_gradients: bool = False
    eight_bit: bool = False
    paged: bool = False
    factored: bool = False
    offloaded: Callable[[nn.Module, Workload], torch.optim.Optimizer] | None = None
    mark_phases: Callable[[Callable[[str], None], str], AbstractContextManager[None]] | None = None
    svd_gap: Callable[[Workload], int] | None = None


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that `module` trains, each once, in the module's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


OPTIMIZERS = Registry(
    "optimizer",
    Optimizer,
    {
        "adamw_torch": "vrambench.methods.optimizers.adamw:ADAMW_TORCH",
        "adamw_torch_fused": "vrambench.methods.optimizers.adamw:ADAMW_TORCH_FUSED",
        "adamw_bnb_8bit": "vrambench.methods.optimizers.bitsandbytes:ADAMW_BNB_8BIT",
        "paged_adamw_8bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_ADAMW_8BIT",
        "adafactor": "vrambench.methods.optimizers.adafactor:ADAFACTOR",
        "galore_adamw": "vrambench.methods.optimizers.galore:GALORE_ADAMW",
        "galore_adamw_layerwise": "vrambench.methods.optimizers.galore:GALORE_ADAMW_LAYERWISE",
        "galore_adamw_8bit": "vrambench.methods.optimizers.galore:GALORE_ADAMW_8BIT",
        "galore_adamw_8bit_layerwise": "vrambench.methods.optimizers.galore:GALORE_ADAMW_8BIT_LAYERWISE",
    },
)
