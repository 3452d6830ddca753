"""StableAdamW (arXiv 2304.13013) by torch-optimi: AdamW whose learning rate falls, tensor by tensor, where a gradient is far larger
than its second moment says, as Adafactor clips its updates.

On CUDA with bf16 arithmetic and Triton a step is two kernels for each parameter, which take no memory; elsewhere it is PyTorch's
operators, one parameter after the other. In 16 bit each weight also keeps what rounding has cost it (Kahan summation).
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


class StableAdamWOptions(Options):
    """Defaults of transformers' TrainingArguments and `optim_args`."""

    namespace: ClassVar[str] = "stable_adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled: this times the learning rate is taken off each weight in each step."""
    decouple_lr: bool = False
    """Whether the weight decay is not multiplied by the learning rate, but by its part of `max_lr`."""
    max_lr: Annotated[float, Field(gt=0)] | None = None
    """The largest learning rate of a schedule, for decouple_lr; null is the learning rate."""
    kahan_sum: bool | None = None
    """Whether rounding is made good for; null does it for weights in 16 bit."""


def make(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """optimi.StableAdamW: two moments of the weights' type, in 16 bit a third tensor like them."""
    from optimi import StableAdamW

    optimizer: Any = StableAdamW(groups, lr=workload.learning_rate, **dict(workload.of(StableAdamWOptions)))
    if simulated(groups):
        for group in optimizer.param_groups:
            group["triton"] = True
    if any(parameter.is_meta or hasattr(parameter, "fake_mode") for group in groups for parameter in group["params"]):
        optimizer.step = functools.partial(_step_without_kernels, optimizer.step)
    made: torch.optim.Optimizer = optimizer
    return made


def _nothing(**_: Any) -> None:
    """No mock: that would keep what it is called with."""


def _step_without_kernels(step: Callable[[], Any]) -> Any:
    """A step without values: state comes into being, and what a step computes is left out. Triton's kernels take no memory."""
    with mock.patch("optimi.stableadamw.stableadamw", _nothing):
        return step()


STABLE_ADAMW = Optimizer(
    summary="AdamW that clips its updates, with Kahan summation in 16 bit",
    options=StableAdamWOptions,
    make=make,
    requires=("optimi",),
    one_kernel=True,
)
