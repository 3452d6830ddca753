"""AdamW with fp32 or weight-typed moments, by PyTorch: one kernel per list of tensors (foreach), or fused.

`foreach=True` is asked for by name, because PyTorch's own choice differs between devices, and the list kernels hold one
more copy of the parameters at their peak.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar
from unittest import mock

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer, simulated
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class AdamWOptions(Options):
    """Defaults of transformers' TrainingArguments."""

    namespace: ClassVar[str] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled: this times the learning rate is taken off each weight in each step."""


def adamw_settings(workload: Workload) -> dict[str, Any]:
    """Keyword arguments that every AdamW takes."""
    return {"lr": workload.learning_rate, **dict(workload.of(AdamWOptions))}


def make_foreach(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """torch.optim.AdamW over lists of tensors."""
    return torch.optim.AdamW(groups, **adamw_settings(workload), foreach=True)


def make_fused(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """torch.optim.AdamW in one fused kernel."""
    optimizer: Any = torch.optim.AdamW(groups, **adamw_settings(workload), fused=True)
    if simulated(groups):
        optimizer.step = functools.partial(_step_anywhere, optimizer.step)
    return optimizer


def _step_anywhere(step: Callable[[], Any]) -> Any:
    """A step on the simulated device: the fused operator takes its tensors, the check before it does not."""
    with mock.patch("torch.optim.adam._device_dtype_check_for_fused"):
        return step()


def make_cpu_adam(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """DeepSpeed's AdamW for state that lies on the host."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, **adamw_settings(workload), adamw_mode=True)


ADAMW_TORCH = Optimizer(
    summary="PyTorch's AdamW, list kernels", options=AdamWOptions, make=make_foreach, offloaded=make_cpu_adam
)
ADAMW_TORCH_FUSED = Optimizer(
    summary="PyTorch's AdamW, fused kernel", options=AdamWOptions, make=make_fused, offloaded=make_cpu_adam
)
