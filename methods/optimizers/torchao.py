"""torchao's AdamW: moments in 8 or in 4 bits, block by block, and a step that torch.compile makes one kernel of.

Tensors of fewer than 4,096 elements, or of a number that blocks do not divide, keep moments of the weights' type. On the CPU the
step is not compiled, which would take tens of seconds for each shape; the numbers are the same. On the simulated device it takes
nothing beside its state, as one kernel does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal
from unittest import mock

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer, simulated
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class TorchAOOptions(Options):
    """Defaults of transformers' TrainingArguments and `optim_args`."""

    namespace: ClassVar[str] = "torchao"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled: this times the learning rate is taken off each weight in each step."""
    block_size: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Elements that have one scale."""
    bf16_stochastic_round: bool = False
    """Whether bf16 weights are rounded up or down by chance."""


def maker(kind: Literal["AdamW8bit", "AdamW4bit"]) -> Callable[[list[Group], nn.Module, Workload], Any]:
    """What makes torchao's optimizer of that class."""

    def make(groups: list[Group], module: nn.Module, workload: Workload) -> Any:
        import torchao.optim

        optimizer = getattr(torchao.optim, kind)(groups, lr=workload.learning_rate, **dict(workload.of(TorchAOOptions)))
        if simulated(groups):
            optimizer.step = functools.partial(_step_without_kernels, optimizer.step)
        elif not any(parameter.is_cuda for group in groups for parameter in group["params"]):
            optimizer.step = functools.partial(_step_uncompiled, optimizer.step)
        return optimizer

    return make


def _step_uncompiled(step: Callable[[], Any]) -> Any:
    with mock.patch.object(torch, "compile", lambda function, **_: function):
        return step()


def _nothing(*_: Any) -> None:
    """No mock: that would keep what it is called with."""


def _step_without_kernels(step: Callable[[], Any]) -> Any:
    """A step on the simulated device: state comes into being as for the kernel, which takes no memory and is left out. Each
    moment's table of values is made by an operator that a tracer sees, as `torch.tensor` is none there."""
    make = torch.tensor

    def tensor(values: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        if device is not None and torch.device(device).type == "meta":
            return torch.empty(len(values), dtype=dtype, device=device)
        return make(values, dtype=dtype, device=device)

    with mock.patch("torchao.optim.adam.single_param_adam", _nothing), mock.patch.object(torch, "tensor", tensor):
        return _step_uncompiled(step)


def uncertain(workload: Workload) -> str:
    """Whether what inductor makes of the step is one kernel is decided on a GPU."""
    return (
        "what torch.compile's step may keep beside its state, at most a copy of the largest weight, of its gradient and of "
        "both moments in fp32 (16 bytes an element), and nothing where all is one kernel"
    )


def optimizer(summary: str, kind: Literal["AdamW8bit", "AdamW4bit"]) -> Optimizer:
    """The axis value of torchao's optimizer of that class."""
    return Optimizer(
        summary=summary,
        options=TorchAOOptions,
        make=maker(kind),
        requires=("torchao.optim",),
        eight_bit=True,
        one_kernel=True,
        unmodelled=uncertain,
    )


ADAMW_TORCH_8BIT = optimizer("torchao's AdamW, 8-bit moments", "AdamW8bit")
ADAMW_TORCH_4BIT = optimizer("torchao's AdamW, 4-bit moments", "AdamW4bit")
